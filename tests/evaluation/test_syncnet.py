"""SyncNet against a twin in PyTorch with random weights, and its cepstra from the definition."""

import numpy as np
import pytest

from tm_jax.evaluation import mfcc
from tm_jax.evaluation import syncnet

_RTOL = 1e-4  # Of the output's scale.


def _reference_cepstra(samples: np.ndarray) -> np.ndarray:
    """The definition with loops: windows, transform, triangles, cosines, lifter."""
    emphasised = [samples[0]]
    emphasised += [b - 0.97 * a for a, b in zip(samples, samples[1:])]
    count = 1 + int(np.ceil(max(0, len(samples) - 400) / 160))
    padded = np.zeros(400 + 160 * count)
    padded[: len(samples)] = emphasised
    hertz = lambda mel: 700 * (10 ** (mel / 2595) - 1)
    top = 2595 * np.log10(1 + 8000 / 700)
    edge = [int(513 * hertz(top * i / 27) / 16000) for i in range(28)]
    rows = []
    angle = -2j * np.pi * np.outer(np.arange(257), np.arange(400)) / 512
    transform = np.exp(angle)
    for i in range(count):
        power = np.abs(transform @ padded[160 * i : 160 * i + 400]) ** 2 / 512
        mel = np.zeros(26)
        for j in range(26):
            low, middle, high = edge[j : j + 3]
            for k in range(low, middle):
                mel[j] += power[k] * (k - low) / (middle - low)
            for k in range(middle, high):
                mel[j] += power[k] * (high - k) / (high - middle)
        log = np.log(mel)
        row = []
        for c in range(13):
            cosine = np.cos(np.pi * c * (2 * np.arange(26) + 1) / 52)
            scale = np.sqrt((1 if c == 0 else 2) / 26)
            row.append(scale * (log @ cosine) * (1 + 11 * np.sin(np.pi * c / 22)))
        row[0] = np.log(power.sum())
        rows.append(row)
    return np.array(rows)


def test_cepstra_from_the_definition():
    rng = np.random.default_rng(0)
    samples = 3000 * rng.standard_normal(2000)
    found = mfcc.mfcc(samples)
    assert found.shape == (11, 13)
    np.testing.assert_allclose(found, _reference_cepstra(samples), rtol=0, atol=1e-8)


def test_silence_has_finite_cepstra():
    assert np.isfinite(mfcc.mfcc(np.zeros(1600))).all()
    assert mfcc.mfcc(np.zeros(10)).shape == (1, 13)


class _Twin:
    """The published network, written down as PyTorch modules in its own names."""

    def __init__(self, torch):
        nn = torch.nn
        torch.manual_seed(0)

        def stack(conv, norm, pool, plan):
            layers = []
            for kind, *args in plan:
                if kind == "conv":
                    layers += [conv(*args[:3], **args[3]), norm(args[1]), nn.ReLU()]
                else:
                    layers.append(pool(*args))
            return nn.Sequential(*layers)

        one = {"padding": 1}
        self.net = nn.ModuleDict({
            "netcnnaud": stack(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, [
                ("conv", 1, 64, 3, one), ("pool", 1, 1),
                ("conv", 64, 192, 3, one), ("pool", 3, (1, 2)),
                ("conv", 192, 384, 3, one), ("conv", 384, 256, 3, one),
                ("conv", 256, 256, 3, one), ("pool", 3, (2, 2)),
                ("conv", 256, 512, (5, 4), {}),
            ]),
            "netcnnlip": stack(nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, [
                ("conv", 3, 96, (5, 7, 7), {"stride": (1, 2, 2)}), ("pool", (1, 3, 3), (1, 2, 2)),
                ("conv", 96, 256, (1, 5, 5), {"stride": (1, 2, 2), "padding": (0, 1, 1)}),
                ("pool", (1, 3, 3), (1, 2, 2), (0, 1, 1)),
                ("conv", 256, 256, (1, 3, 3), {"padding": (0, 1, 1)}),
                ("conv", 256, 256, (1, 3, 3), {"padding": (0, 1, 1)}),
                ("conv", 256, 256, (1, 3, 3), {"padding": (0, 1, 1)}),
                ("pool", (1, 3, 3), (1, 2, 2)),
                ("conv", 256, 512, (1, 6, 6), {}),
            ]),
            **{
                name: nn.Sequential(
                    nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024)
                )
                for name in ("netfcaud", "netfclip")
            },
        })  # fmt: skip
        for module in self.net.modules():  # Statistics of their own, or a mix-up is not seen.
            if hasattr(module, "running_mean"):
                torch.nn.init.normal_(module.running_mean, 0, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 2)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, 0, 0.2)
        self.net.eval()

    def __call__(self, torch, stack, head, x):
        with torch.no_grad():
            middle = self.net[stack](torch.from_numpy(x))
            return self.net[head](middle.reshape(len(x), -1)).numpy()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    torch = pytest.importorskip("torch")
    twin = _Twin(torch)
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save(twin.net.state_dict(), path)
    return torch, twin, path, syncnet.SyncNet(str(path))


def _close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=_RTOL * np.abs(expected).max())


def test_sound_is_the_twins(pair):
    torch, twin, _, net = pair
    x = np.random.default_rng(1).normal(0, 10, (3, 13, 20)).astype(np.float32)
    _close(net.sound(x), twin(torch, "netcnnaud", "netfcaud", x[:, None]))


def test_lips_are_the_twins(pair, monkeypatch):
    torch, twin, _, net = pair
    monkeypatch.setattr(syncnet, "_BATCH", 1)
    x = np.random.default_rng(2).uniform(0, 255, (1, 5, 224, 224, 3)).astype(np.float32)
    expected = twin(torch, "netcnnlip", "netfclip", np.moveaxis(x, -1, 1).copy())
    _close(net.lips(x), expected)


def test_another_checkpoint_is_refused(pair, tmp_path):
    torch, twin, _, _ = pair
    state = twin.net.state_dict()
    more = tmp_path / "more.model"
    torch.save({**state, "extra.weight": torch.zeros(2)}, more)
    with pytest.raises(ValueError, match="unknown tensors extra.weight"):
        syncnet.SyncNet(str(more))
    state.pop("netfclip.3.bias")
    less = tmp_path / "less.model"
    torch.save(state, less)
    with pytest.raises(ValueError, match="no tensor netfclip.3.bias"):
        syncnet.SyncNet(str(less))


@pytest.mark.parametrize("late", [-4, 0, 3])
def test_a_known_offset_is_found(late):
    rng = np.random.default_rng(3)
    points = rng.standard_normal((80, 16))
    lips = np.roll(points, late, 0)  # The picture shows later what sounded before.
    found = syncnet.compare(lips[10:70], points[10:70])
    assert found.offset == late
    assert found.distance < 1.5 and found.confidence > 2
    strangers = syncnet.compare(rng.standard_normal((60, 16)), points[10:70])
    assert strangers.confidence < 0.5


def test_crops_hold_the_face_as_published():
    """A square of 40 pixels: 56 across, from 20 above its centre to 36 below it."""
    frame = np.zeros((200, 200, 3), np.uint8)
    frame[80:136, 72:128] = (10, 20, 30)  # Exactly the crop.
    box = np.array([80, 80, 120, 120]) / 200
    found = syncnet.crops([frame] * 15, np.tile(box, (15, 1)))
    assert found.shape == (15, 224, 224, 3)
    assert (found[7] == (30, 20, 10)).all()
    edge = syncnet.crops([frame] * 15, np.tile(np.array([0, 0, 40, 40]) / 200, (15, 1)))
    assert (edge[7, 112, 4] == 110).all()  # Outside the picture.


def test_measure_pairs_frames_with_their_sound():
    """Networks that pass the time through: window 4 t of sound belongs to frame t."""

    class Clock:
        def sound(self, cepstra):
            return cepstra[:, :1, 0]

        def lips(self, frames):
            return frames[:, 0, 0, 0, :1].astype(float)

    rng = np.random.default_rng(4)
    samples = np.repeat(rng.uniform(0.01, 0.9, 60), 640) * rng.standard_normal(60 * 640)
    samples = np.clip(samples, -1, 1)
    energy = mfcc.mfcc(np.round(samples * 32767))[::4, 0]
    faces = np.broadcast_to(energy[:60, None, None, None], (60, 2, 2, 3))
    found = syncnet.measure(Clock(), faces, samples)
    assert found.offset == 0 and found.distance < 1e-3 < found.confidence
    with pytest.raises(ValueError, match="more than 5"):
        syncnet.measure(Clock(), faces[:5], samples)
