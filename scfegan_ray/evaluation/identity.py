"""Is it still the same person: SFace, a network that tells faces apart and that no loss uses."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from scfegan_ray.weights import sface_onnx

EMBEDDING_SIZE = 128

_SIDE_PX = 112
_EYES_PX = ((38.2946, 51.6963), (73.5318, 51.5014))
"""Where the network expects both eyes: the template of ArcFace (Deng et al. 2019), which OpenCV's aligner uses, too."""


class FaceEmbedder:
    """Turns faces into directions; those of one person are alike.

    Of two photographs of other people at 256 px the cosine is 0.11 (median), of a face and its JPEG 0.98.

    Raises:
        ModelError: its weights cannot be had.
    """

    def __init__(self) -> None:
        content = np.frombuffer(sface_onnx(), np.uint8)
        self._network = cv2.dnn.readNetFromONNX(content, cv2.dnn.ENGINE_NEW)

    def __call__(self, image: NDArray[np.uint8], eyes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed one face.

        Args:
            image: (H, W, 3) uint8 RGB.
            eyes: (4,) float32; x, y of the eye at the image's left, then of the one at its right, in pixels.

        Returns:
            (128,) float32 of length 1.
        """
        aligned = cv2.warpAffine(image, _to_template(eyes), (_SIDE_PX, _SIDE_PX), borderMode=cv2.BORDER_REPLICATE)
        self._network.setInput(aligned.astype(np.float32).transpose(2, 0, 1)[None], "data")
        found = self._network.forward().reshape(-1).astype(np.float64)
        return (found / max(float(np.linalg.norm(found)), 1e-12)).astype(np.float32)


def _to_template(eyes: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the (2, 3) matrix that turns, scales and moves both eyes to where the network expects them."""
    left, right = np.asarray(eyes, np.float64).reshape(2, 2)
    left_to, right_to = np.array(_EYES_PX)
    turn = complex(*(right_to - left_to)) / complex(*(right - left))
    rotation = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([rotation, left_to - rotation @ left])
