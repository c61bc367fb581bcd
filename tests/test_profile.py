"""The profile of a step: gaps, names, and numbers that belong together."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from torch.autograd import DeviceType

from bench import profile, profiles
from bench.__main__ import main
from bench.contents import COST_ONLY
from bench.record import PHASES


@pytest.mark.parametrize(("spans", "length"), [
    ([(0, 2), (3, 4)], 3),
    ([(3, 4), (0, 2), (1, 2.5)], 3.5),  # overlapping, and in any order
    ([(0, 9), (1, 2), (3, 4)], 9),  # within another
    ([(5, 5)], 0),
])
def test_what_is_covered_counts_once(spans, length):
    assert profile.covered(spans) == length


@pytest.mark.parametrize(("name", "short"), [
    ("aten::mm", "aten::mm"),
    ("attention_kernel", "attention_kernel"),
    ("triton_poi_fused_add_mul_12", "triton_poi_fused_add_mul"),
    ("void at::native::vectorized_elementwise_kernel<4, at::native::F<float>, std::array<char*, 2ul> >(int, F)",
     "at::native::vectorized_elementwise_kernel"),
    ("void at::native::(anonymous namespace)::topk<long>(long*)", "at::native::topk"),
    ("Memcpy DtoH (Device -> Pinned)", "Memcpy DtoH"),
])
def test_names_lose_what_tells_nothing(name, short):
    assert profile.plain(name) == short


def event(key, kind, us, self_us=0.0):
    return SimpleNamespace(key=key, device_type=kind, self_cpu_time_total=self_us,
                           time_range=SimpleNamespace(elapsed_us=lambda: us))


def test_kernels_are_grouped_by_name_and_counted_per_step():
    seen = [event("triton_add_1", DeviceType.CUDA, 3000.0), event("triton_add_2", DeviceType.CUDA, 1000.0),
            event("gemm", DeviceType.CUDA, 8000.0)]
    table = profile.grouped(seen, steps=2)
    assert table.to_dict("list") == {"kernel": ["gemm", "triton_add"], "calls": [0.5, 1.0], "ms": [4.0, 2.0]}


def test_operators_do_not_count_what_they_call():
    seen = [event("aten::matmul", DeviceType.CPU, 900.0, 100.0), event("aten::mm", DeviceType.CPU, 800.0, 800.0)]
    assert profile.grouped(seen, steps=1).ms.tolist() == [0.8, 0.1]


def test_the_whole_on_a_tiny_model(tmp_path, capsys):
    flags = ["--target", "tiny", "--methods", "prompt_lookup:k=3", "--device", "cpu", "--max-new-tokens", "12"]
    assert main(["profile", *flags, "--batch", "2", "--out", str(tmp_path)]) == 0
    assert COST_ONLY in (tmp_path / "profile.md").read_text()
    table = pd.read_csv(tmp_path / "tables" / "profile_steps.csv").set_index("method")
    assert list(table.index) == ["autoregressive", "prompt_lookup:k=3"]
    for number, (_, row) in enumerate(table.iterrows()):
        assert row.step >= row[[*PHASES]].max() > 0
        assert 0 < row.share < 1 and row.share == pytest.approx(row.limit / row.step, rel=1e-3)
        assert row.watched == pytest.approx(row.busy + row.gaps, rel=1e-3) and row.gaps > 0
        kernels = pd.read_csv(tmp_path / "tables" / f"profile_kernels_{number}.csv")
        assert kernels.ms.sum() == pytest.approx(row.busy, rel=0.1)
        assert kernels.share.sum() == pytest.approx(kernels.ms.sum() / row.watched, rel=1e-3)
        products = kernels[kernels.kernel.isin(["aten::mm", "mkldnn::_linear_pointwise"])]
        assert products.calls.sum() >= 8  # two layers of four products, and the head
    assert "prompt_lookup:k=3" in capsys.readouterr().out


def files(directory):
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}


def test_pages_are_made_again_from_what_is_kept(tmp_path):
    flags = ["--target", "tiny", "--methods", "autoregressive", "--device", "cpu", "--max-new-tokens", "6"]
    assert main(["profile", *flags, "--batch", "1", "--out", str(tmp_path / "first")]) == 0
    written = files(tmp_path / "first")
    pages = {f"profile.{ending}" for ending in ("json", "md", "tex", "html")}
    tables = {f"tables/{name}.csv" for name in ("profile_steps", "profile_kernels_0", "environment")}
    assert written.keys() == pages | tables
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / profiles.FILE).write_bytes(written[profiles.FILE])
    assert main(["report", str(tmp_path / "again")]) == 0
    assert files(tmp_path / "again") == written


def kept(directory):
    """A profile of one method with one kernel, on disk."""
    clock, watched = dict.fromkeys(profiles.CLOCK, 1 / 7), dict.fromkeys(profiles.WATCHED, 2 / 3)
    gemm = {"kernel": "gemm", "calls": 2.0, "ms": 0.1, "share": 1 / 3}
    one = profiles.Profile("autoregressive", clock, watched, [gemm])
    settings = {"target": "made-up", "dtype": "fp32", "device": "cpu", "batch": 3}
    profiles.Profiles({"settings": settings}, False, [one]).save(directory)
    return directory / profiles.FILE


def test_what_is_kept_is_read_as_it_was(tmp_path):
    before = kept(tmp_path).read_bytes()
    profiles.load(tmp_path).save(tmp_path)
    assert files(tmp_path) == {profiles.FILE: before}
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "profile.md").read_text()
    assert "made-up · fp32 · cpu · batch 3" in page and COST_ONLY not in page
    line = next(line for line in page.splitlines() if line.startswith("| gemm"))
    assert line.replace("|", " ").split() == ["gemm", "2.0", "50.0", "0.100", "33.3"]


MISSING = object()


@pytest.mark.parametrize(("path", "value"), [
    ("provenance", MISSING), ("provenance", []), ("provenance settings", MISSING),
    *((f"provenance settings {name}", MISSING) for name in ("target", "dtype", "device", "batch")),
    ("random", MISSING), ("profiles", MISSING), ("profiles", []), ("profiles", 3),
    *((f"profiles 0 {name}", MISSING) for name in ("method", "clock", "watched", "kernels")),
    *((f"profiles 0 clock {name}", MISSING) for name in profiles.CLOCK),
    *((f"profiles 0 watched {name}", MISSING) for name in profiles.WATCHED),
    *((f"profiles 0 kernels 0 {name}", MISSING) for name in profiles.KERNEL),
    ("profiles 0 clock step", "quick"), ("profiles 0 clock step", None), ("profiles 0 kernels 0 ms", "quick"),
])  # fmt: skip
def test_a_damaged_file_is_one_line(tmp_path, capsys, path, value):
    file = kept(tmp_path)
    *above, last = path.split()
    node = whole = json.loads(file.read_text())
    for name in above:
        node = node[int(name) if isinstance(node, list) else name]
    if value is MISSING:
        del node[last]
    else:
        node[last] = value
    file.write_text(json.dumps(whole))
    check_damage(tmp_path, capsys)


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_a_file_that_is_something_else_is_one_line(tmp_path, capsys, text):
    kept(tmp_path).write_text(text)
    check_damage(tmp_path, capsys)


def check_damage(directory, capsys):
    assert main(["report", str(directory)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{directory / profiles.FILE} is damaged" in line and line.endswith("measure again")
    assert [path.name for path in directory.iterdir()] == [profiles.FILE]


def test_a_directory_of_other_results_is_left_alone(tmp_path, capsys):
    (tmp_path / "provenance.json").write_text("{}")
    assert main(["profile", "--target", "tiny", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "holds other results already: choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["provenance.json"]


@pytest.mark.parametrize("flags", ["--repeats 2", "--part 1/2", "--limit 3", "--methods nothing"])
def test_bad_input_is_one_line(capsys, flags):
    assert main(["profile", "--suite", "smoke", *flags.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
