"""How users' first words may go: the target, left alone, asks ever the same kinds of questions."""

OPENERS = (
    "Explain", "Explain to a child", "Describe", "Describe the difference between", "Compare", "Define", "Name five",
    "Name three reasons", "List", "List the steps", "Give me an example of", "Give me advice on", "Give me ideas for",
    "Suggest", "Recommend", "Write a short story about", "Write a poem about", "Write a letter to",
    "Write an email to", "Write a review of", "Write a speech for", "Write a dialogue between", "Write a recipe for",
    "Write a Python function that", "Write a program that", "Write a headline for", "Write one sentence about",
    "Write a product description of", "Rewrite this sentence:", "Correct the grammar:", "Make this shorter:",
    "Make this more polite:", "Continue this story:", "Sort these words:", "Extract the names from this text:",
    "Extract all numbers:", "Find the mistake:", "Fill in the blank:", "Complete the sentence:", "Make this a list:",
    "Classify this review as good or bad:", "Is this true or false:", "Answer with yes or no:", "Answer in one word:",
    "Imagine that you are", "Pretend to be", "You are a teacher.", "You are a doctor.", "You are a pirate.",
    "Act as a travel guide.", "Plan a day in", "Plan a birthday for", "Help me", "Help me decide whether",
    "I feel", "I have a problem with", "I want to learn", "I need", "My friend", "My computer", "My neighbour",
    "Tell me about", "Tell me a joke about", "Tell me a fact about", "Teach me", "Solve", "Solve for x:", "Calculate",
    "How many", "How much", "How long does it take", "How do I", "How can I", "How does", "Why", "Why do", "Why is",
    "What happens if", "What would you do if", "What is the best way to", "What is the capital of", "What are",
    "What causes", "What year", "When", "When did", "Where", "Where can I", "Who", "Who was", "Who wrote", "Which",
    "Which is better,", "Can you", "Could", "Should I", "Is it", "Are there", "Do you", "Does", "In a shop,",
    "A train leaves", "A farmer has", "If I have", "There are", "Given", "Suppose that", "Translate", "Summarize",
)
