"""The profile of a step: gaps, names, and numbers that belong together."""

from types import SimpleNamespace

import pandas as pd
import pytest
from torch.autograd import DeviceType

from bench import profile
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


@pytest.mark.parametrize("flags", ["--repeats 2", "--part 1/2", "--limit 3", "--methods nothing"])
def test_bad_input_is_one_line(capsys, flags):
    assert main(["profile", "--suite", "smoke", *flags.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
