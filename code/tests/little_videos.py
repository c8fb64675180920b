"""Small videos for tests: frame i is a grey of level 5 * i, with a red left and a blue right edge."""

import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np


def grey_frames(count: int, width: int = 64, height: int = 48) -> np.ndarray:
    """uint8 (T, H, W, 3), RGB."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = (5 * np.arange(count) % 256)[:, None, None, None]
    frames[:, :, :8] = 255, 0, 0
    frames[:, :, -8:] = 0, 0, 255
    return frames


def write_video(path: Path, count: int, width: int = 64, height: int = 48, codec: str = "mp4v") -> Path:
    """MPEG-4 (.mp4), or codec="MJPG" for an .avi."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25, (width, height))
    for frame in grey_frames(count, width, height):
        writer.write(frame[..., ::-1].copy())
    writer.release()
    return path


def level(frame: np.ndarray) -> int:
    """Which frame of a video of `write_video` this is."""
    quarter = frame.shape[1] // 4
    return round((float(frame[:, quarter:-quarter].mean()) + 2) / 5)  # MPEG-4 makes it up to 4 darker


def crash_on_three(item: int) -> int:
    """What a decoder does that runs into a bug of its own: takes the process with it."""
    if item == 3:
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * item
