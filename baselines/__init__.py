"""The methods that Parallel Token Prediction is measured against, one file each."""
