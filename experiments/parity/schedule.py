"""Noise levels and complete sampling loops against diffusers' schedulers and transformer."""

from collections.abc import Iterator
import functools

import diffusers
import jax.numpy as jnp
import numpy as np
import torch

from experiments.parity import compare
from experiments.parity import transformer as transformer_lib
from tm_jax.diffusion import flow_matching
from tm_jax.diffusion import samplers

_GUIDANCE = 5.0  # Wan's default; its velocity is uncond + g * (cond - uncond).
_LOOP = transformer_lib.Case(
    heads=3, head_width=16, image=False, batch=2, frames=3, height=4, width=6, time="one"
)


def levels(shift: float, count: int) -> compare.Row:
    """Our noise levels against those of the Euler scheduler, given unshifted times."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / count for i in range(count)])
    expected = scheduler.sigmas.numpy()
    actual = np.append(flow_matching.Schedule(shift=shift).steps(count), 0)
    times = np.asarray(flow_matching.model_time(actual[:-1]))
    return compare.row(
        "schedule, Euler", f"shift {shift:g}, {count} steps", "float32",
        {"sigmas": actual, "times": times},
        {"sigmas": expected, "times": scheduler.timesteps.numpy()},
    )


def published_levels(shift: float, count: int) -> compare.Row:
    """The same for the scheduler of Wan's diffusers edition, whose times end at 1/1000."""
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(count)
    smallest = 1 / scheduler.config.num_train_timesteps
    times = np.linspace(1, smallest, count + 1)[:-1]
    actual = np.append(flow_matching.Schedule(shift=shift).shifted(times), 0)
    # It moves the first level from 1 to 1 - 1e-6, because its solver takes a logarithm.
    return compare.row(
        "schedule, UniPC", f"shift {shift:g}, {count} steps", "float32", actual,
        scheduler.sigmas.numpy(),
    )


def many_steps(count: int, shift: float = 5.0) -> compare.Row:
    """A complete loop with guidance: `samplers.euler` against the Euler scheduler."""
    case = _LOOP
    theirs, ours, params = transformer_lib.pair(case)
    i = transformer_lib.inputs(case)
    empty = np.zeros_like(i["text"])  # An empty prompt is padding alone.

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - n / count for n in range(count)])
    x = torch.tensor(i["x"])
    with torch.no_grad():
        for time in scheduler.timesteps:
            now = {**i, "x": x.numpy(), "sigma": np.full_like(i["sigma"], time / 1000)}
            cond = transformer_lib.run_reference(theirs, case, now)
            uncond = transformer_lib.run_reference(theirs, case, {**now, "text": empty})
            x = scheduler.step(uncond + _GUIDANCE * (cond - uncond), time, x).prev_sample

    def velocity(params, x, sigma):
        now = {**i, "x": x, "sigma": jnp.broadcast_to(sigma, i["sigma"].shape)}
        cond = transformer_lib.velocity(ours, params, now)
        uncond = transformer_lib.velocity(ours, params, {**now, "text": empty})
        return uncond + _GUIDANCE * (cond - uncond)

    @compare.jit
    def loop(params, noise):
        sigmas = flow_matching.Schedule(shift=shift).steps(count)
        return samplers.euler(functools.partial(velocity, params), noise, sigmas)[-1]

    words = f"Euler, {count} steps, guidance {_GUIDANCE:g}; {case.words}"
    return compare.row("sampling loop", words, "float32", loop(params, i["x"]), x.numpy())


def few_steps(count: int = 2, shift: float = 5.0) -> compare.Row:
    """A complete loop of the student's kind: predict x0, add fresh noise, repeat."""
    case = _LOOP
    theirs, ours, params = transformer_lib.pair(case)
    i = transformer_lib.inputs(case)

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=[1 - n / count for n in range(count)])
    x, fresh = torch.tensor(i["x"]), [i["x"]]
    generator, again = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for time in scheduler.timesteps:
            now = {**i, "x": x.numpy(), "sigma": np.full_like(i["sigma"], time / 1000)}
            out = transformer_lib.run_reference(theirs, case, now)
            x = scheduler.step(out, time, x, generator=generator).prev_sample
            fresh.append(torch.randn(x.shape, generator=again).numpy())

    @compare.jit
    def loop(params):
        def predict(step, x, sigma):
            del step
            now = {**i, "x": x, "sigma": jnp.full(i["sigma"].shape, sigma, jnp.float32)}
            return flow_matching.to_x0(x, transformer_lib.velocity(ours, params, now), sigma), None

        sigmas = flow_matching.Schedule(shift=shift).steps(count)
        return samplers.few_step(predict, lambda step: jnp.asarray(fresh[step]), sigmas)[0]

    words = f"few-step, {count} steps; {case.words}"
    return compare.row("sampling loop", words, "float32", loop(params), x.numpy())


def rows() -> Iterator[compare.Row]:
    """All comparisons of this part."""
    for shift in (1.0, 3.0, 5.0, 8.0):
        for count in (2, 50):
            yield levels(shift, count)
    yield published_levels(3.0, 50)
    yield published_levels(5.0, 50)
    yield many_steps(50)
    yield many_steps(2)
    yield few_steps(2)
