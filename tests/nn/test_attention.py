"""Attention against NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tm_jax.core import target
from tm_jax.nn import attention
from tm_jax.parallel import rules
from tm_jax.planning import flops

_ATOL = 3e-6  # Measured 3.6e-7.


def reference(q, k, v, valid=None):
    """softmax(q k / sqrt(K)) v in float64, axes [*, L, N, K]."""
    q, k, v = (np.float64(x) for x in (q, k, v))
    logits = np.einsum("...lnk,...snk->...nls", q, k) / np.sqrt(q.shape[-1])
    if valid is not None:
        logits = np.where(valid, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("...nls,...snk->...lnk", weights, v)


def _inputs(dtype=np.float32):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((2, 3, 5, 2, 8))
    k, v = rng.standard_normal((2, 2, 3, 7, 2, 8))
    return [x.astype(dtype) for x in (q, k, v)]


def test_matches_the_definition():
    q, k, v = _inputs()
    actual = attention.attend(q, k, v)
    np.testing.assert_allclose(actual, reference(q, k, v), rtol=0, atol=_ATOL)


def test_keys_broadcast_over_frames():
    q, k, v = _inputs()
    actual = attention.attend(q, k[:, :1], v[:, :1])
    expected = reference(q, k[:, [0, 0, 0]], v[:, [0, 0, 0]])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=_ATOL)


def test_mask():
    q, k, v = _inputs()
    valid = np.random.default_rng(1).random((2, 3, 1, 5, 7)) < 0.5
    valid[..., 0] = True
    expected = reference(q, k, v, valid)
    actual = attention.attend(q, k, v, valid)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=_ATOL)
    hidden = ~valid.any((0, 1, 2, 3))
    assert not hidden.any()  # Every key is seen by some query: the test covers all slots.


def test_hidden_values_do_not_leak():
    q, k, v = _inputs()
    valid = np.arange(7) < 4
    k2, v2 = k.copy(), v.copy()
    k2[..., 4:, :, :], v2[..., 4:, :, :] = 1e4, -1e4
    np.testing.assert_array_equal(
        attention.attend(q, k, v, valid), attention.attend(q, k2, v2, valid)
    )


def test_returns_the_dtype_of_the_query():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in _inputs())
    out = attention.attend(q, k, v)
    assert out.dtype == jnp.bfloat16
    # Measured 0.007: bfloat16 keeps 8 bits of inputs of size about 3.
    expected = reference(*(np.asarray(x, np.float32) for x in (q, k, v)))
    np.testing.assert_allclose(np.float32(out), expected, rtol=0, atol=0.04)


def test_close_logits_of_narrow_inputs_stay_apart():
    """Logits near 72 that differ by about one; bfloat16 knows only halves there."""
    rng = np.random.default_rng(2)
    q = np.full((1, 4, 2, 64), 3.0)
    k = 3 + 0.25 * rng.standard_normal((1, 9, 2, 64))
    v = rng.standard_normal((1, 9, 2, 64))
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    expected = reference(*(np.asarray(x, np.float32) for x in (q, k, v)))
    # Measured 0.004; 0.12 where logits are rounded to bfloat16.
    np.testing.assert_allclose(
        np.float32(attention.attend(q, k, v)), expected, rtol=0, atol=0.02
    )


def test_large_heads_one_after_another(monkeypatch):
    q, k, v = _inputs()
    shared = k[:, :1], v[:, :1]
    expected = reference(q, k, v), reference(q, *(x[:, [0, 0, 0]] for x in shared))
    taken = []
    whole = attention._head_by_head
    monkeypatch.setattr(attention, "_LARGE", 1)
    monkeypatch.setattr(
        attention, "_head_by_head", lambda *a: taken.append(a[0].shape) or whole(*a)
    )
    for (keys, values), wanted in zip([(k, v), shared], expected):
        actual = attention.attend(q, keys, values)
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=_ATOL)
    # Frames that share their keys are one sequence.
    assert taken == [(2, 3, 5, 2, 8), (2, 15, 2, 8)]


def test_lengths_are_a_mask_of_the_first_keys():
    q, k, v = _inputs()
    lengths = np.asarray([[7, 3, 1], [2, 7, 5]])
    valid = np.arange(7) < lengths[..., None, None, None]
    actual = attention.attend(q, k, v, lengths=lengths)
    np.testing.assert_allclose(actual, reference(q, k, v, valid), rtol=0, atol=_ATOL)
    np.testing.assert_array_equal(
        attention.attend(q, k, v, lengths=4), attention.attend(q, k, v, np.arange(7) < 4)
    )


@pytest.mark.parametrize("lengths", [None, 4])
def test_queries_in_blocks_change_nothing_and_leave_no_logits(monkeypatch, lengths):
    q, k, v = (jnp.asarray(x) for x in _inputs())
    q = jnp.concatenate([q, -q, 2 * q], 2)[:, :, :12]  # Twelve queries.

    def run(q, k, v):
        return attention.attend(q, k, v, lengths=lengths, backend="xla")

    def loss(*args):
        return jnp.sum(jnp.sin(run(*args)))

    whole, wanted = run(q, k, v), jax.grad(loss, (0, 1, 2))(q, k, v)
    monkeypatch.setattr(attention, "_MOST", 2 * 7 * 5)  # Of two heads and seven keys.
    assert attention.blocks(2, 12, 7) == 3
    # A head and a sample of the largest array have 4 x 7 logits instead of 12 x 7.
    largest = max(
        math.prod(x.aval.shape) for x in _values(jax.make_jaxpr(jax.grad(loss))(q, k, v).jaxpr)
        if x.aval.shape[-1:] == (7,)
    )
    assert largest == 2 * 3 * 2 * 4 * 7
    np.testing.assert_allclose(run(q, k, v), whole, rtol=0, atol=1e-6)
    for name, value, found in zip("qkv", wanted, jax.grad(loss, (0, 1, 2))(q, k, v)):
        np.testing.assert_allclose(found, value, rtol=0, atol=2e-6, err_msg=name)


def _values(jaxpr):
    """Results of all equations, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for inner in flops._inner(equation.params):
            yield from _values(inner)


def test_the_teacher_s_81_frames_of_18_billion_fit():
    """40 heads, 22 frames of 1024 tokens: 81 GB of logits a layer, of which 1 GiB is there."""
    tokens = 22 * 1024
    count = attention.blocks(40, tokens, tokens)
    assert tokens % count == 0 and 40 * tokens * (tokens // count) * 4 <= 2**30


def _wide(dtype=jnp.bfloat16, batch=2):
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = ((batch, 160, 2, 128), (batch, 200, 2, 128), (batch, 200, 2, 128))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes)]


@pytest.mark.parametrize("lengths", [None, (200, 90)])
def test_splash_equals_the_definition_and_its_gradients_those_of_xla(lengths):
    """Interpreted, in lengths that are no multiples of its blocks."""
    q, k, v = _wide()
    lengths = lengths and jnp.asarray(lengths)
    valid = None if lengths is None else np.arange(200) < np.asarray(lengths)[:, None, None, None]
    wanted = reference(*(np.asarray(x, np.float32) for x in (q, k, v)), valid)

    def run(backend):
        def loss(q, k, v):
            mixed = attention.attend(q, k, v, lengths=lengths, backend=backend)
            return jnp.sum(jnp.sin(mixed.astype(jnp.float32))), mixed

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

    (grads, mixed), (others, other) = run("splash"), run("xla")
    # One unit of bfloat16 in the largest value, and XLA's own distance.
    np.testing.assert_allclose(np.asarray(mixed, np.float32), wanted, rtol=0, atol=0.02)
    np.testing.assert_allclose(np.asarray(other, np.float32), wanted, rtol=0, atol=0.02)
    for one, two in zip(grads, others):
        scale = float(jnp.abs(two.astype(jnp.float32)).max())
        difference = np.abs(np.asarray(one, np.float32) - np.asarray(two, np.float32)).max()
        assert difference < 0.03 * scale
    if lengths is not None:
        assert not np.asarray(grads[1], np.float32)[1, 90:].any()


def test_splash_on_a_mesh_has_its_own_samples_and_heads():
    mesh = rules.make_mesh(jax.devices()[:4], data=2, tensor=2)
    q, k, v = _wide()
    lengths = jnp.asarray((200, 90))
    alone = attention.attend(q, k, v, lengths=lengths, backend="splash")
    with rules.use(mesh):
        shared = jax.jit(lambda *x: attention.attend(
            *(attention.place_keys(y) for y in x), lengths=lengths, backend="splash"
        ))(q, k, v)
    np.testing.assert_array_equal(np.asarray(shared, np.float32), np.asarray(alone, np.float32))
    assert shared.addressable_shards[0].data.shape == (1, 160, 1, 128)


@pytest.mark.parametrize("backend, dtype, width, platform, message", [
    ("cudnn", jnp.bfloat16, 128, None, "attention=cudnn needs a GPU, this is a CPU"),
    ("splash", jnp.bfloat16, 128, "gpu", "attention=splash needs a TPU, this is a GPU"),
    ("splash", jnp.bfloat16, 64, None, "heads of a multiple of 128, got 64"),
    ("cudnn", jnp.float32, 128, "gpu", "needs bfloat16 and heads of a multiple of 8"),
    ("cudnn", jnp.bfloat16, 20, "gpu", "needs bfloat16 and heads of a multiple of 8"),
])
def test_a_kernel_that_cannot_run_says_why(backend, dtype, width, platform, message):
    x = jnp.zeros((1, 4, 2, width), dtype)
    with target.tracing_for(platform or "cpu"), pytest.raises(ValueError, match=message):
        attention.attend(x, x, x, backend=backend)


def test_a_machine_without_cudnn_says_so(monkeypatch):
    def without(*args, **kwargs):
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(jax.nn, "dot_product_attention", without)
    q, k, v = _wide()
    with target.tracing_for("gpu"), pytest.raises(ValueError, match="not detected. Choose auto"):
        attention.attend(q, k, v, backend="cudnn")


def test_cudnn_is_asked_for_the_same(monkeypatch):
    """By JAX's own XLA form in its place: layout, scale and lengths are as it wants them."""
    original = jax.nn.dot_product_attention

    def xla(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return original(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", xla)
    q, k, v = _wide()
    lengths = jnp.asarray((200, 90))
    with target.tracing_for("gpu"):
        found = attention.attend(q, k, v, lengths=lengths, backend="cudnn")
    valid = np.arange(200) < np.asarray(lengths)[:, None, None, None]
    wanted = reference(*(np.asarray(x, np.float32) for x in (q, k, v)), valid)
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, rtol=0, atol=0.02)


def test_operations_of_splash_are_counted_like_those_of_xla():
    def count(backend):
        x = [jax.ShapeDtypeStruct((2, n, 2, 128), jnp.bfloat16) for n in (512, 1536, 1536)]
        with target.tracing_for("tpu"):
            jaxpr = jax.make_jaxpr(lambda *x: attention.attend(*x, backend=backend))(*x)
        return flops.count(jaxpr.jaxpr).total

    assert count("splash") == count("xla") == 4 * 2 * 512 * 1536 * 2 * 128


def test_heads_that_do_not_divide_are_refused():
    mesh = rules.make_mesh(jax.devices()[:3], seq=3)
    q, k, v = _wide()
    with rules.use(mesh), pytest.raises(ValueError, match="2 do not divide. Choose auto or xla"):
        attention.attend(q, k, v, backend="splash")
