"""What is measured of a video: which way the camera moved, and which effect is in it."""

import math

import cv2
import numpy as np

# What each camera motion does to the place of the picture's content by the last frame: pixels to the right and down,
# the logarithm of its size, and the angle by which it turns clockwise.
PAN, TURN = 48.0, math.radians(9)
CAMERA = {
    "closer": (2, +1), "away": (2, -1), "left": (0, +1), "right": (0, -1), "up": (1, +1), "down": (1, -1),
    "clockwise": (3, +1), "anticlockwise": (3, -1),
}
UNITS = np.array([PAN, PAN, math.log(1.25), TURN])
WAY = (0, 10, 20, 30, 40, 50, 60, 70, 80)


def grey(video):
    """Returns frames `[T, H, W]` in 0..1 of a video `[3, T, H, W]` in -1..1."""
    return (video.float().mean(0).cpu().numpy() + 1) / 2


def register(video):
    """Registers the frames along the way with the first one. Returns the motion by the last frame in units of what a
    prompt asks for: right, down, size, clockwise."""
    frames = grey(video).astype(np.float32)
    h, w = frames.shape[1:]
    warp = np.eye(2, 3, dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 80, 1e-5)
    for at in WAY[1:]:
        try:
            _, warp = cv2.findTransformECC(frames[0], frames[at], warp, cv2.MOTION_AFFINE, criteria, None, 5)
        except cv2.error:
            # Without a match at this frame, the way goes on from the last one that had one.
            continue
    linear, shift = warp[:, :2].astype(float), warp[:, 2].astype(float)
    middle = np.array([(w - 1) / 2, (h - 1) / 2])
    moved = linear @ middle + shift - middle
    size = 0.5 * math.log(max(np.linalg.det(linear), 1e-6))
    angle = math.atan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1])
    return np.array([*moved, size, angle]) / UNITS


def direction(motion):
    """Returns the camera motion that a registration shows most of."""
    axis = int(np.abs(motion).argmax())
    sign = 1 if motion[axis] > 0 else -1
    return next(name for name, what in CAMERA.items() if what == (axis, sign))


def features(video):
    """Returns what a small classifier tells effects by, from `[3, T, H, W]` in -1..1."""
    colours = (video.float().cpu().numpy() + 1) / 2
    first, last = colours[:, 0].mean((1, 2)) + 0.02, colours[:, -8:].mean((1, 2, 3)) + 0.02
    frames = grey(video)[8:]
    background = np.median(frames[::4], axis=0)
    rest = frames - background
    sharp = rest - np.stack([cv2.GaussianBlur(f, (0, 0), 4) for f in rest])
    spread = sharp.std() + 1e-4
    horizontal, vertical = np.abs(np.diff(sharp, axis=2)).mean(), np.abs(np.diff(sharp, axis=1)).mean()

    def alike(step, down):
        a, b = sharp[:-step, :sharp.shape[1] - down], sharp[step:, down:]
        return float((a * b).mean() / spread ** 2)

    return np.array([
        *np.log(last / first), math.log(spread), math.log(rest.std() + 1e-4),
        np.clip((sharp ** 3).mean() / spread ** 3, -10, 10), np.log1p((sharp ** 4).mean() / spread ** 4),
        math.log((horizontal + 1e-4) / (vertical + 1e-4)),
        alike(1, 0), alike(1, 2), alike(4, 8), alike(1, 8), alike(4, 0), alike(8, 0), alike(16, 0), alike(32, 0),
    ])


class EffectClassifier:
    """Trained on the features of true videos with their effects' names."""

    def __init__(self, features, names, seed=0):
        from sklearn.ensemble import ExtraTreesClassifier

        self.model = ExtraTreesClassifier(300, min_samples_leaf=2, random_state=seed, n_jobs=1)
        self.model.fit(np.stack(features), names)

    def name(self, features):
        return str(self.model.predict(features[None])[0])
