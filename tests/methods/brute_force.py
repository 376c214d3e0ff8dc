"""The papers' formulas, written plainly: float64, whole-network autograd, one forward per mask. Slow on purpose."""

from __future__ import annotations

import copy

import torch
from torch.nn import functional as F


class BruteForce:
    """A network in float64; a layer's map is seen, or replaced, by a forward hook."""

    def __init__(self, model, layer):
        self.model = copy.deepcopy(model).double().eval()
        self.layer = dict(self.model.named_modules())[layer]

    def activations_and_gradients(self, image, target):
        seen = []

        def keep(module, args, output):
            seen.append(output.clone())
            return seen[-1].clone()

        handle = self.layer.register_forward_hook(keep)
        with torch.enable_grad():
            logit = self.model(image[None].double())[0, target]
            (gradient,) = torch.autograd.grad(logit, seen[-1])
        handle.remove()
        return seen[-1][0].detach(), gradient[0]

    @torch.no_grad()
    def logits(self, image, replace=None):
        handle = self.layer.register_forward_hook(lambda *_: replace[None]) if replace is not None else None
        logits = self.model(image[None].double())[0]
        if handle:
            handle.remove()
        return logits

    def gradcam(self, image, target):
        a, g = self.activations_and_gradients(image, target)
        total = torch.zeros(a.shape[1:], dtype=torch.float64)
        for k in range(len(a)):
            total += g[k].sum() / g[k].numel() * a[k]
        return total

    def layercam(self, image, target):
        a, g = self.activations_and_gradients(image, target)
        return sum(g[k].clamp(min=0) * a[k] for k in range(len(a)))

    def gradcampp(self, image, target):
        a, g = self.activations_and_gradients(image, target)
        total = torch.zeros(a.shape[1:], dtype=torch.float64)
        for k in range(len(a)):
            weight = 0.0
            for grad in g[k].flatten().tolist():
                if grad > 0:
                    weight += grad**2 / (2 * grad**2 + float(a[k].sum()) * grad**3) * grad
            total += weight * a[k]
        return total

    def gradcampp_authors(self, image, target):
        """Their code: alphas over their sum per channel; the factor exp(y), common to all, is left out."""
        a, g = self.activations_and_gradients(image, target)
        denominator = 2 * g**2 + g**3 * a.sum((1, 2), keepdim=True)
        alphas = g**2 / torch.where(denominator == 0, 1, denominator)
        norm = alphas.sum((1, 2), keepdim=True)
        alphas = torch.where(norm == 0, 0, alphas / norm)
        return ((g.clamp(min=0) * alphas).sum((1, 2), keepdim=True) * a).sum(0)

    def masks(self, a, size):
        for k in range(len(a)):
            big = F.interpolate(a[k][None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
            span = big.max() - big.min()
            yield (big - big.min()) / span if a[k].max() > a[k].min() else torch.zeros_like(big)

    def scorecam(self, image, target):
        a, _ = self.activations_and_gradients(image, target)
        base = self.logits(torch.zeros_like(image))[target]
        scores = [self.logits(image.double() * m)[target] - base for m in self.masks(a, image.shape[1:])]
        weights = torch.stack(scores).softmax(0)
        return (weights[:, None, None] * a).sum(0)

    def scorecam_authors(self, image, target):
        a, _ = self.activations_and_gradients(image, target)
        total = torch.zeros(a.shape[1:], dtype=torch.float64)
        for k, m in enumerate(self.masks(a, image.shape[1:])):
            if a[k].max() > a[k].min():
                total += self.logits(image.double() * m).softmax(0)[target] * a[k]
        return total

    def reciprocam(self, image, target, variant="softmax", gaussian=False):
        a, _ = self.activations_and_gradients(image, target)
        height, width = a.shape[1:]
        kernel = {(0, 0): 4 / 16, **{(dy, dx): (2 if 0 in (dy, dx) else 1) / 16 for dy in (-1, 0, 1)
                                     for dx in (-1, 0, 1) if (dy, dx) != (0, 0)}}  # fmt: skip
        found = torch.zeros(height, width, dtype=torch.float64)
        for y in range(height):
            for x in range(width):
                masked = torch.zeros_like(a)
                for (dy, dx), weight in kernel.items() if gaussian else [((0, 0), 1.0)]:
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        masked[:, y + dy, x + dx] = weight * a[:, y, x]
                logits = self.logits(image, masked)
                found[y, x] = (logits.softmax(0) if variant == "softmax" else logits)[target]
        return found
