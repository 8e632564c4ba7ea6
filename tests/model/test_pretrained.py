"""Loading pretrained weights: strictly or by a mapping, all of it or nothing."""

from __future__ import annotations

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import helios
from helios.errors import PretrainedError
from tests import zoo
from tests.trainer.runs import Batches, params, run, same

INFINITY = float("inf")


class Net(nn.Module):
    """Names that share prefixes, buffers, and an integer."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.fc = nn.Linear(3, 4)
            self.fc2 = nn.Linear(4, 2)
            self.norm = nn.BatchNorm1d(4)


def bits(module):
    tensors = {n: t for n, t in module.state_dict().items() if isinstance(t, torch.Tensor)}
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def load(module, content, path, **arguments):
    torch.save(content, path)
    return helios.load_pretrained(module, path, **arguments)


def refusal(module, content, path, **arguments) -> str:
    """Load, expect an error after which no bit of the module has changed, return its message."""
    torch.save(content, path)
    before = bits(module)
    with pytest.raises(PretrainedError) as caught:
        helios.load_pretrained(module, path, **arguments)
    assert same(bits(module), before)
    return str(caught.value)


# Strict, by default.


def test_equal_names_shapes_and_dtypes_are_loaded_bit_for_bit(path):
    source, target = Net(1), Net(2)
    loaded = load(target, source.state_dict(), path)
    assert same(bits(target), bits(source))
    assert loaded == helios.model.Loaded(loaded=tuple(target.state_dict()))


def test_values_are_copied_into_the_same_parameters_and_buffers(path):
    target = Net()
    before = {n: (id(t), t.data_ptr()) for n, t in target.state_dict(keep_vars=True).items()}
    load(target, Net(1).state_dict(), path)
    after = {n: (id(t), t.data_ptr()) for n, t in target.state_dict(keep_vars=True).items()}
    assert after == before
    assert all(parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.grad_fn is None for parameter in target.parameters())


def test_a_missing_entry_is_an_error_that_shows_it(path):
    content = bits(Net(1))
    del content["fc2.weight"]
    message = refusal(Net(), content, path)
    assert "does not fit Net" in message
    assert "missing in the file (1):\n    fc2.weight: float32[2, 4]" in message
    assert "Nothing was loaded." in message


def test_an_unexpected_entry_is_an_error_that_shows_it(path):
    message = refusal(Net(), {**bits(Net(1)), "fc3.weight": torch.ones(2, 2)}, path)
    assert "unexpected in the file (1):\n    fc3.weight: float32[2, 2]" in message
    assert "mapping={'': ''}" in message


def test_a_name_that_only_begins_alike_is_no_match(path):
    content = bits(nn.Linear(3, 4))
    message = refusal(nn.ModuleDict({"fc": nn.Linear(3, 4)}), _under("fc2.", content), path)
    assert "missing in the file (2)" in message
    assert "unexpected in the file (2)" in message


def test_another_shape_is_an_error_that_shows_both(path):
    content = {**bits(Net(1)), "fc.weight": torch.ones(4, 4)}
    message = refusal(Net(), content, path)
    assert "fc.weight: the file has float32[4, 4], the module float32[4, 3]" in message


@pytest.mark.parametrize("shape", [(4, 3, 1), (3, 4), (12,), (1, 4, 3)])
def test_a_shape_of_as_many_elements_is_another_shape(path, shape):
    refusal(Net(), {**bits(Net(1)), "fc.weight": torch.ones(shape)}, path)


def test_a_shape_that_would_broadcast_is_another_shape(path):
    message = refusal(Net(), {**bits(Net(1)), "fc.bias": torch.ones(1)}, path)
    assert "the file has float32[1], the module float32[4]" in message
    refusal(Net(), {**bits(Net(1)), "fc.bias": torch.ones(())}, path)


def test_everything_that_does_not_fit_is_told_at_once(path):
    content = {**bits(Net(1)), "fc.bias": torch.ones(1), "new": torch.ones(1)}
    del content["norm.bias"]
    message = refusal(Net(), content, path)
    assert all(name in message for name in ("fc.bias", "new", "norm.bias"))


def test_the_first_twenty_are_listed_and_the_rest_counted(path):
    content = {f"layer{n:02}": torch.ones(1) for n in range(25)}
    message = refusal(Net(), content, path)
    assert "unexpected in the file (25)" in message
    assert "layer19" in message
    assert "layer20" not in message
    assert "and 5 more" in message


def _under(prefix, content):
    return {prefix + name: value for name, value in content.items()}


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "a.b."])
def test_a_prefix_that_all_names_have_is_proposed_as_a_mapping_that_works(path, prefix):
    source, target = Net(1), Net(2)
    message = refusal(target, _under(prefix, bits(source)), path)
    assert f"mapping={{'': '{prefix}'}}" in message
    helios.load_pretrained(target, path, mapping={"": prefix})
    assert same(bits(target), bits(source))


def test_a_prefix_that_only_the_module_has_is_proposed_too(path):
    target = nn.ModuleDict({"net": Net()})
    assert "mapping={'net.': ''}" in refusal(target, bits(Net(1)), path)
    helios.load_pretrained(target, path, mapping={"net.": ""})
    assert same(bits(target["net"]), bits(Net(1)))


# A mapping.


def test_a_mapping_loads_what_it_names_and_keeps_the_rest(path):
    source, target = Net(1), Net(2)
    content = {**_under("encoder.", bits(source.fc)), "x": source.norm.weight.detach()}
    before = bits(target)
    loaded = load(target, content, path, mapping={"fc.": "encoder.", "norm.weight": "x"})
    assert same(bits(target.fc), bits(source.fc))
    assert same(target.norm.weight.detach(), source.norm.weight.detach())
    assert loaded.loaded == ("fc.weight", "fc.bias", "norm.weight")
    assert set(loaded.kept) == set(before) - set(loaded.loaded)
    assert same({n: bits(target)[n] for n in loaded.kept}, {n: before[n] for n in loaded.kept})
    assert loaded.unused == ()


def test_a_prefix_does_not_load_into_a_longer_name(path):
    target = Net()
    before = bits(target.fc2)
    load(target, bits(Net(1)), path, mapping={"fc.": "fc."})
    assert same(bits(target.fc2), before)


def test_none_keeps_what_is_below_a_prefix(path):
    source, target = Net(1), Net(2)
    before = bits(target.fc2)
    loaded = load(target, bits(source), path, mapping={"": "", "fc2.": None})
    assert same(bits(target.fc2), before)
    assert same(bits(target.fc), bits(source.fc))
    assert loaded.kept == loaded.unused == ("fc2.weight", "fc2.bias")


def test_entries_that_a_mapping_keeps_may_have_another_shape(path):
    content = {**bits(Net(1)), "fc2.weight": torch.ones(9, 4), "fc2.bias": torch.ones(9)}
    loaded = load(Net(), content, path, mapping={"": "", "fc2.": None})
    assert loaded.unused == ("fc2.weight", "fc2.bias")


def test_an_entry_below_a_mapped_prefix_must_be_in_the_file(path):
    content = _under("encoder.", {"weight": torch.ones(4, 3)})
    message = refusal(Net(), content, path, mapping={"fc.": "encoder."})
    assert "fc.bias (from encoder.bias): float32[4]" in message


def test_a_mapping_that_matches_nothing_changes_nothing(path):
    message = refusal(Net(), bits(Net(1)), path, mapping={"": "", "fc3.": None})
    assert "the module has no entry below 'fc3.' (near it: 'fc.', 'fc2.')" in message


def test_a_mapping_is_checked_before_the_file_is_read(path):
    with pytest.raises(PretrainedError, match="an empty dict"):
        helios.load_pretrained(Net(), path, mapping={})


def test_one_entry_of_the_file_may_go_to_several_of_the_module(path):
    target = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    content = bits(nn.Linear(2, 2))
    load(target, content, path, mapping={"a.": "", "b.": ""})
    assert same(bits(target["a"]), content)
    assert same(bits(target["b"]), content)


def test_a_key_and_a_mapping_go_together(path):
    source, target = Net(1), Net(2)
    content = {"epoch": 3, "state_dict": _under("module.", bits(source))}
    load(target, content, path, key="state_dict", mapping={"": "module."})
    assert same(bits(target), bits(source))


# Dtypes.


def test_another_dtype_is_an_error_that_proposes_the_cast(path):
    message = refusal(Net(), bits(Net(1).double()), path)
    assert "fc.weight: the file has float64[4, 3], the module float32[4, 3]" in message
    assert "cast=True" in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_cast_rounds_as_torch_does(path, dtype):
    source, target = Net(1).to(dtype), Net(2)
    load(target, bits(source), path, cast=True)
    assert same(bits(target), bits(source.float()))
    assert target.fc.weight.dtype is torch.float32


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fc.weight", torch.int64),
        ("fc.weight", torch.bool),
        ("fc.weight", torch.complex64),
        ("norm.num_batches_tracked", torch.float32),
        ("norm.num_batches_tracked", torch.int32),
    ],
)
def test_only_floating_point_is_cast(path, name, dtype):
    content = bits(Net(1))
    content[name] = content[name].to(dtype)
    message = refusal(Net(), content, path, cast=True)
    assert f"{name}: the file has {str(dtype)[6:]}" in message
    assert "cast=True" not in refusal(Net(), content, path)


# What cannot be loaded.


QUIET = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def _quantised():
    return torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)


@QUIET
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.ones(4).to_sparse(), "not dense (torch.sparse_coo)"),
        (_quantised, "a quantised tensor (torch.qint8)"),
        (lambda: torch.ones(4, device="meta"), "on the meta device"),
        (lambda: 1.0, "a value of type float, not a tensor"),
        (lambda: None, "a value of type NoneType, not a tensor"),
        (lambda: [1.0] * 4, "a value of type list, not a tensor"),
    ],
)
def test_a_value_that_is_no_dense_tensor_is_refused_by_name(path, make, why):
    message = refusal(Net(), {**bits(Net(1)), "fc.bias": make()}, path)
    assert "cannot be loaded (1):\n    fc.bias: the file has " in message
    assert why in message


@QUIET
@pytest.mark.parametrize("value", [torch.ones(4, device="meta"), torch.eye(4).to_sparse(), 3, "a"])
def test_a_value_that_is_no_dense_tensor_may_be_left_aside(path, value):
    loaded = load(Net(), {**bits(Net(1)), "new": value}, path, mapping={"": ""})
    assert loaded.unused == ("new",)


def test_an_unexpected_value_that_is_no_tensor_is_shown(path):
    message = refusal(Net(), {**bits(Net(1)), "epoch": 3}, path)
    assert "epoch: a value of type int, not a tensor" in message


def test_an_expanded_tensor_is_loaded_into_memory_of_its_own(path):
    target = Net()
    load(target, {**bits(Net(1)), "fc.weight": torch.tensor([[2.0]]).expand(4, 3)}, path)
    assert same(target.fc.weight.detach(), torch.full((4, 3), 2.0))
    assert target.fc.weight.stride() == (3, 1)


def test_a_transposed_tensor_is_loaded_by_its_values(path):
    target, weight = Net(), torch.arange(12.0).reshape(3, 4)
    load(target, {**bits(Net(1)), "fc.weight": weight.T}, path)
    assert same(target.fc.weight.detach(), weight.T.contiguous())


@pytest.mark.parametrize("shape", [(10**12,), (10**6, 10**6), (4, 3, 10**11)])
def test_a_huge_shape_is_refused_without_a_byte_for_it(path, shape):
    # All elements are one place in the file: only a copy would take terabytes.
    message = refusal(Net(), {**bits(Net(1)), "fc.weight": torch.ones(1).expand(shape)}, path)
    assert f"the file has float32{list(shape)}" in message


def test_a_huge_shape_may_be_left_aside(path):
    content = {**bits(Net(1)), "new": torch.ones(1).expand(10**12)}
    assert load(Net(), content, path, mapping={"": ""}).unused == ("new",)


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"scale": torch.ones(1)}

    def set_extra_state(self, state):
        raise AssertionError("nothing is loaded into it")


def test_extra_state_is_refused_by_name(path):
    message = refusal(Extra(2, 1), Extra(2, 1).state_dict(), path)
    assert "_extra_state: the module's entry is extra state" in message
    assert "to None" in message


def test_extra_state_may_be_kept(path):
    source, target = Extra(2, 1), Extra(2, 1)
    mapping = {"": "", "_extra_state": None}
    loaded = load(target, source.state_dict(), path, mapping=mapping)
    assert same(params(target), params(source))
    assert loaded.kept == loaded.unused == ("_extra_state",)


def test_a_copy_that_a_hook_puts_into_the_state_dict_is_refused(path):
    def hook(module, state, prefix, metadata):
        state["weight"] = state["weight"].clone()

    target = nn.Linear(2, 1)
    content = bits(nn.Linear(2, 1))
    target.register_state_dict_post_hook(hook)
    message = refusal(target, content, path)
    assert "weight: the module's entry is extra state or made by a hook" in message


def test_a_module_on_the_meta_device_is_refused(path):
    torch.save(bits(nn.Linear(2, 1)), path)
    with pytest.raises(PretrainedError, match="weight: the module has a tensor on the meta device"):
        helios.load_pretrained(nn.Linear(2, 1, device="meta"), path)


def test_a_lazy_module_is_refused(path):
    torch.save(bits(nn.Linear(2, 1)), path)
    with pytest.raises(PretrainedError, match="weight: the module has a lazy parameter"):
        helios.load_pretrained(nn.LazyLinear(1), path)


def test_a_buffer_whose_elements_share_memory_is_refused_before_anything_is_copied(path):
    target = nn.Linear(2, 1)
    target.register_buffer("mask", torch.ones(1).expand(3))
    content = {**bits(nn.Linear(2, 1)), "mask": torch.zeros(3)}
    assert "mask: the module has an expanded tensor" in refusal(target, content, path)


def test_a_module_without_parameters_is_refused(path):
    torch.save(bits(Net()), path)
    with pytest.raises(PretrainedError, match="received a Sequential without parameters"):
        helios.load_pretrained(nn.Sequential(), path)


def test_what_is_no_module_is_refused(path):
    with pytest.raises(TypeError, match=r"module: received a dict; expected an nn\.Module"):
        helios.load_pretrained({}, path)


# Tied parameters.


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.emb.weight


def test_tied_parameters_stay_tied(path):
    source, target = Tied(), Tied()
    loaded = load(target, source.state_dict(), path)
    assert target.head.weight is target.emb.weight
    assert same(bits(target), bits(source))
    assert loaded.loaded == ("emb.weight", "head.weight")


def test_two_values_for_tied_parameters_are_refused(path):
    content = {"emb.weight": torch.zeros(5, 3), "head.weight": torch.ones(5, 3)}
    message = refusal(Tied(), content, path)
    assert "head.weight: it is one with emb.weight, but the file has two different" in message


def test_values_for_tied_parameters_are_compared_as_they_are_loaded(path):
    content = {"emb.weight": torch.zeros(5, 3), "head.weight": torch.zeros(5, 3).double()}
    assert len(load(Tied(), content, path, cast=True).loaded) == 2


def test_one_name_of_a_tied_parameter_loads_both(path):
    target, content = Tied(), {"wte.weight": torch.ones(5, 3)}
    loaded = load(target, content, path, mapping={"emb.": "wte."})
    assert loaded.loaded == ("emb.weight", "head.weight")
    assert same(target.head.weight.detach(), torch.ones(5, 3))


def test_a_tied_parameter_cannot_be_kept_and_loaded(path):
    content = {"emb.weight": torch.ones(5, 3)}
    message = refusal(Tied(), content, path, mapping={"": "", "head.": None})
    assert "head.weight: the mapping keeps it, but it is one with emb.weight" in message
    assert "map it to emb.weight too" in message


def test_two_buffers_without_elements_are_not_tied(path):
    target = nn.Linear(2, 1)
    target.register_buffer("a", torch.ones(0))
    target.register_buffer("b", torch.ones(0))
    loaded = load(target, bits(target), path, mapping={"": "", "a": None})
    assert loaded.kept == ("a",)


# What is reported.


def test_values_that_are_not_finite_are_loaded_and_reported(path):
    content = bits(Net(1))
    content["fc.weight"][0, 0] = float("nan")
    content["norm.running_var"][1] = INFINITY
    target = Net()
    loaded = load(target, content, path)
    assert loaded.non_finite == ("fc.weight", "norm.running_var")
    assert same(bits(target), content)


def test_a_cast_that_overflows_is_reported(path):
    content = bits(Net(1).double())
    content["fc.bias"][0] = 1e300
    target = Net()
    assert load(target, content, path, cast=True).non_finite == ("fc.bias",)
    assert target.fc.bias[0].item() == INFINITY


def test_values_that_are_not_asked_for_are_not_reported(path):
    content = {**bits(Net(1)), "new": torch.tensor(float("nan"))}
    assert load(Net(), content, path, mapping={"": ""}).non_finite == ()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_every_dtype_is_asked_whether_it_is_finite(path, dtype):
    target = nn.Module()
    target.register_buffer("scale", torch.ones(2).to(dtype))
    assert load(target, {"scale": torch.zeros(2).to(dtype)}, path).non_finite == ()
    bad = torch.full((2,), float("nan")).to(dtype)
    assert load(target, {"scale": bad}, path).non_finite == ("scale",)


def test_the_report_is_one_line():
    loaded = helios.model.Loaded(
        loaded=("a", "b"), kept=tuple("cdefg"), unused=("h",), non_finite=("a",)
    )
    assert str(loaded) == (
        "loaded 2 entries; kept 5 (c, d, e, ...); unused in the file 1 (h); NOT FINITE 1 (a)"
    )


def test_the_report_is_frozen():
    with pytest.raises(AttributeError):
        helios.model.Loaded(loaded=()).kept = ("a",)
    assert msgspec.structs.asdict(helios.model.Loaded(loaded=("a",)))["loaded"] == ("a",)


def test_a_subclass_of_tensors_in_the_module_is_refused(path):
    class Wrapped(torch.Tensor):
        pass

    target = nn.Linear(2, 1)
    target.register_buffer("mask", torch.ones(3).as_subclass(Wrapped))
    content = {**bits(nn.Linear(2, 1)), "mask": torch.zeros(3)}
    assert "mask: the module has a Wrapped, which is not a plain tensor" in refusal(
        target, content, path
    )


# In a run.


class Pretrained(zoo.Line):
    """Momentum, so that what comes before a resume matters after it."""

    def __init__(self, path):
        super().__init__("line", lambda: helios.optim.SGD(lr=0.05, momentum=0.9))
        self.path = path

    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.loaded = helios.load_pretrained(self.net, self.path)

    def loss(self, batch):
        x, y = batch
        return F.mse_loss(self.net(F.dropout(x, 0.2, self.training)), y)


@pytest.fixture
def pretrained(path):
    torch.save(bits(nn.Linear(3, 1)), path)
    return path


def test_a_fit_begins_with_the_pretrained_weights(pretrained):
    model = Pretrained(pretrained)
    state = helios.init_state(model)
    assert same(
        {n.removeprefix("net."): p for n, p in state.carry.params.items()},
        dict(torch.load(pretrained, weights_only=True)),
    )


@pytest.mark.parametrize("split", [1, 3, 5])
def test_a_fit_from_pretrained_weights_is_resumed_exactly(tmp_path, pretrained, split):
    data = Batches(zoo.regression(3))
    whole = run(tmp_path / "a", Pretrained(pretrained), data, steps=7)
    run(tmp_path / "b", Pretrained(pretrained), data, steps=split)
    resumed = run(tmp_path / "b", Pretrained(pretrained), data, steps=7)
    assert same(resumed.state.carry, whole.state.carry)
    assert resumed.state.current_iteration == 7


def test_the_weights_of_a_checkpoint_win_over_the_pretrained_ones(tmp_path, pretrained):
    data = Batches(zoo.regression(3))
    whole = run(tmp_path / "a", Pretrained(pretrained), data, steps=7)
    run(tmp_path / "b", Pretrained(pretrained), data, steps=3)
    torch.save(bits(nn.Linear(3, 1)), pretrained)  # another draw
    model = Pretrained(pretrained)
    resumed = run(tmp_path / "b", model, data, steps=7)
    assert same(resumed.state.carry, whole.state.carry)
    assert same(params(model), dict(whole.state.carry.params))


def test_a_run_goes_on_from_the_checkpoint_of_another(tmp_path):
    first = run(tmp_path / "a", steps=3)
    model = zoo.Line("second")
    model.prepare()
    helios.load_pretrained(model, next((tmp_path / "a").rglob("*.pth")))
    assert same(params(model), dict(first.state.carry.params))


def test_loading_draws_no_random_numbers(pretrained):
    before = torch.get_rng_state()
    helios.load_pretrained(nn.utils.skip_init(nn.Linear, 3, 1), pretrained)
    assert torch.equal(torch.get_rng_state(), before)
