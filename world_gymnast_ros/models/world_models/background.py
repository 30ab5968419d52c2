"""The background: what a scene looks like at each frame without the arm, as far as that can be computed.

It is the start frame with the arm taken out (its place is computed, `arm_silhouette.py`; what is behind it is filled
in from around it) and with the objects that the hand has moved taken from where they lay to where they are predicted
(`objects.py`): their own pixels, shifted and scaled by the camera's perspective. The network sees it and may take its
pixels, so what is uncovered or moved stays as sharp as it was captured however long the dream; it draws the arm and
the shadows, and corrects what was predicted wrongly.

Image coordinates u, v in -1..1; B clips, T frames, N objects.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ARM_MARGIN = 0.07
"""How far beyond the arm's silhouette it is taken out, in halves of the image: 2 pixels of 64."""
OBJECT_SIZE_M = (0.022, 0.04)
"""Radius and height of an object whose size nobody gives."""
SIZE_MARGIN_M = (0.004, 0.005)
"""How much wider and higher than an object the upright capsule is within which pixels may be its own."""
VACATED_MARGIN = 0.03
"""How far beyond that its shadow and soft edges are taken out where it leaves."""
OWN_FROM, OWN_FULL = 0.05, 0.15
"""Difference (0..1 grey) from the bare table at which a pixel begins to be an object's own, and is wholly."""
MOVED_M = 0.002
"""An object predicted nearer than this to where it lay has not moved."""


def fill(image: Tensor, keep: Tensor) -> Tensor:
    """Return `image` (B, C, H, W) with what is not kept filled in from around, coarse to fine; `keep` (B, 1, H, W).
    """
    if max(image.shape[-2:]) == 1:
        return image
    weight = F.avg_pool2d(keep, 2, ceil_mode=True)
    mean = F.avg_pool2d(image * keep, 2, ceil_mode=True) / weight.clamp_min(1e-6)
    coarse = fill(mean, (4.0 * weight).clamp_max(1.0))
    wide = F.interpolate(coarse, size=image.shape[-2:], mode="bilinear", align_corners=False)
    return image * keep + wide * (1.0 - keep)


def grid_of(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the centres (H, W, 2) of pixels as u, v."""
    rows, cols = torch.meshgrid((torch.arange(height, device=device) + 0.5) / height * 2 - 1,
                                (torch.arange(width, device=device) + 0.5) / width * 2 - 1, indexing="ij")
    return torch.stack([cols, rows], -1)


def project(cameras: Tensor, points_m: Tensor) -> tuple[Tensor, Tensor]:
    """Return u, v (B, ..., 2) and depth (B, ...) m of base points (B, ..., 3) by cameras (B, 12)."""
    P = cameras.view(-1, *([1] * (points_m.ndim - 2)), 3, 4)
    seen = (P[..., :3] @ points_m.unsqueeze(-1)).squeeze(-1) + P[..., 3]
    depth = seen[..., 2].clamp_min(0.05)
    return seen[..., :2] / depth.unsqueeze(-1), depth


class Background:
    """The backgrounds of B clips. Objects that are not there have NaN places."""

    def __init__(self, first: Tensor, arm_distance: Tensor | None, places_m: Tensor | None, cameras: Tensor | None,
                 sizes_m: Tensor | None = None) -> None:
        """Begin at start frames `first` float32 (B, H, W, 3), 0..1.

        `arm_distance` (B, H, W): how far each pixel is from the arm's silhouette, None where none is known. `places_m`
        (B, N, 3) of objects at the start frame, base axes, with `cameras` (B, 12) and `sizes_m` (B, N, 2), radius and
        height (None or NaN: OBJECT_SIZE_M); None: no objects are known.
        """
        image = first.permute(0, 3, 1, 2).contiguous()
        no_arm = torch.ones_like(image[:, :1])
        if arm_distance is not None:
            no_arm = (arm_distance > ARM_MARGIN).float().unsqueeze(1)
        self._objects = None
        table = no_arm
        if places_m is not None and cameras is not None and places_m.shape[1]:
            self._objects = _Objects(image, places_m, cameras, sizes_m)
            table = no_arm * (1.0 - self._objects.around.amax(1, keepdim=True))
        bare = fill(image, table)
        self.clean = image * no_arm + bare * (1.0 - no_arm)
        if self._objects is not None:
            self._objects.cut_out(bare, no_arm)

    def keep(self, copies: Tensor) -> None:
        """Go on with these clips alone, indices."""
        self.clean = self.clean[copies]
        if self._objects is not None:
            self._objects.keep(copies)

    def at(self, places_m: Tensor | None) -> Tensor:
        """Return the backgrounds (B, T, H, W, 3) with objects at `places_m` (B, T, N, 3); None: nothing moved (T is 1).
        """
        out = self.clean.unsqueeze(1)
        if self._objects is not None and places_m is not None:
            out = self._objects.moved_to(places_m, out.repeat(1, places_m.shape[1], 1, 1, 1))
        return out.permute(0, 1, 3, 4, 2)


class _Objects:
    """Objects of B start frames: which pixels are theirs, and what the frame looks like with them elsewhere."""

    def __init__(self, image: Tensor, places_m: Tensor, cameras: Tensor, sizes_m: Tensor | None) -> None:
        self.image, self.cameras = image, cameras
        self.there = places_m.isfinite().all(-1)  # (B, N)
        self.start_m = torch.nan_to_num(places_m)
        height, width = image.shape[-2:]
        self.grid = grid_of(height, width, image.device)
        self.centre, self.depth = project(cameras, self.start_m)
        usual = torch.tensor(OBJECT_SIZE_M, device=image.device).expand(*self.start_m.shape[:2], 2)
        size_m = usual if sizes_m is None else torch.where(sizes_m.isfinite(), sizes_m, usual)
        size_m = size_m + torch.tensor(SIZE_MARGIN_M, device=image.device)
        none = torch.zeros_like(size_m[..., 0])
        radius_m, half_m = size_m[..., 0], size_m[..., 1] / 2
        foot, head, *sides = (project(cameras, self.start_m + torch.stack(shift, -1))[0]
                              for shift in ((none, none, -half_m), (none, none, half_m), (radius_m, none, none),
                                            (none, radius_m, none)))
        radius = torch.maximum(*((side - self.centre).norm(dim=-1) for side in sides))
        along, offset = (head - foot)[:, :, None, None], self.grid - foot[:, :, None, None]
        share = ((offset * along).sum(-1) / along.square().sum(-1).clamp_min(1e-9)).clamp(0.0, 1.0)
        self.beyond = (offset - share.unsqueeze(-1) * along).norm(dim=-1) - radius[:, :, None, None]  # (B, N, H, W)
        self.around = (self.beyond < VACATED_MARGIN).float() * self.there[:, :, None, None].float()

    def keep(self, copies: Tensor) -> None:
        """Go on with these clips alone, indices."""
        for name in ("image", "cameras", "there", "start_m", "centre", "depth", "bare", "own", "vacated"):
            setattr(self, name, getattr(self, name)[copies])

    def cut_out(self, bare: Tensor, no_arm: Tensor) -> None:
        """Find each object's own pixels, by how they differ from the `bare` table (B, 3, H, W)."""
        self.bare = bare
        unlike = (self.image - bare).abs().amax(1, keepdim=True)
        own = ((unlike - OWN_FROM) / (OWN_FULL - OWN_FROM)).clamp(0.0, 1.0)
        self.own = own * (self.beyond < 0.0).float() * self.there[:, :, None, None].float() * no_arm  # (B, N, H, W)
        nobody = torch.zeros_like(self.own[:, :1])
        others = torch.stack([torch.cat([nobody, self.own[:, :n], self.own[:, n + 1:]], 1).amax(1)
                              for n in range(self.own.shape[1])], 1)
        self.vacated = self.around * (1.0 - others)

    def moved_to(self, places_m: Tensor, out: Tensor) -> Tensor:
        """Draw objects at `places_m` (B, T, N, 3) into backgrounds `out` (B, T, 3, H, W), in place."""
        now_m = torch.where(places_m.isfinite(), places_m, self.start_m[:, None])
        moved = ((now_m - self.start_m[:, None]).norm(dim=-1) > MOVED_M) & self.there[:, None]  # (B, T, N)
        some = torch.nonzero(moved.any(1).any(0)).flatten().tolist()
        uv, depth = project(self.cameras, now_m)
        for n in some:
            b, t = torch.nonzero(moved[:, :, n], as_tuple=True)
            gone = self.vacated[b, n].unsqueeze(1)
            out[b, t] = out[b, t] * (1.0 - gone) + self.bare[b] * gone
        for n in some:  # all have left before any arrives
            b, t = torch.nonzero(moved[:, :, n], as_tuple=True)
            scale = (depth[b, t, n] / self.depth[b, n])[:, None, None, None]
            source = self.centre[b, n][:, None, None] + (self.grid - uv[b, t, n][:, None, None]) * scale
            layers = torch.cat([self.image[b], self.own[b, n].unsqueeze(1)], 1)
            seen = F.grid_sample(layers, source, mode="bilinear", padding_mode="zeros", align_corners=False)
            out[b, t] = out[b, t] * (1.0 - seen[:, 3:]) + seen[:, :3] * seen[:, 3:]
        return out
