"""Long videos as Lightning sees them: a module whose predictions are videos in the making."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, fields
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision

from miga_bench.backbones import known_as, one_spelling
from miga_bench.backbones.base import Backbone
from miga_bench.errors import UserError, placed
from miga_bench.export.choice import DenoiserChoice
from miga_bench.export.opening import compile_denoiser, open_model
from miga_bench.harness import frame_scores as _frame_scores  # noqa: F401 - for its short name in YAML
from miga_bench.harness.arms import ArmPlan, as_text, expand, method_name
from miga_bench.harness.generate import kind_of
from miga_bench.harness.itemize import Texts, itemize
from miga_bench.harness.items import Item
from miga_bench.harness.made_of import made_of
from miga_bench.harness.prompt_lists import Wish
from miga_bench.harness.ranks import agree, on_every_rank, same_everywhere
from miga_bench.harness.request import check_characters
from miga_bench.harness.scorers import ItemScorer
from miga_bench.harness.video import Video, negative_prompt, prompt_starts
from miga_bench.harness.writer import Making, RunWriter
from miga_bench.sampling import resolve
from miga_bench.sampling.base import Sampler
from miga_bench.sampling.estimate import BATCH, Estimate, estimate
from miga_bench.sampling.presets import code_hash, method_class, source_hash

# precision of the trainer -> type of the denoiser's weights
WEIGHTS = {
    "32-true": "float32",
    "bf16-true": "bfloat16",
    "16-true": "float16",
    "bf16-mixed": "float32",
    "16-mixed": "float32",
}


class LongVideoModule(LightningModule):
    """A method on a backbone, or several ways to use it; ``predict_step`` turns an item into a video.

    The video is made as it is read. With arms or a grid every prompt is made once by each arm.

    Args:
        backbone: A name that list backbones shows, a folder, a Hub id, or class_path and init_args of a
            Backbone of your own.
        method: A name that list methods shows, or the class_path of a Sampler of your own, such as mine.Waves.
        preset: A named set of the method's settings; by default the backbone's.
        settings: Single settings, by name.
        arms: Named changes of the above, each with any of method, preset and settings.
        grid: Values by setting; every combination is an arm.
        metrics: What scores the videos once they are made.
        negative_prompt: What to steer away from; by default the backbone's.
        height: Frame height in pixels; by default the backbone's.
        width: Frame width in pixels; by default the backbone's.
        lossless: Keep every pixel value in the mp4.
        offload: Keep only the part in use on the GPU.
        long_prompts: Of a prompt of more tokens than the model reads: refuse it, or cut it and tell the model
            as many of its first words as it reads.
        denoiser: What runs it: torch, compile (by torch, when it is first used), onnx:FOLDER,
            onnx+PROVIDER:FOLDER or tensorrt:FOLDER; the last three run what miga-bench export wrote.

    Raises:
        UserError: There is no such backbone, or its family has no such method, preset or setting.

    Attributes:
        given: The class_path and init_args of a Backbone of the user's own, as far as they are known.
    """

    def __init__(
        self,
        backbone: str | Backbone = "tiny-wan",
        method: str | dict[str, Any] = "miga",
        preset: str | None = None,
        settings: dict[str, Any] | None = None,
        arms: dict[str, Any] | None = None,
        grid: dict[str, list[Any]] | None = None,
        metrics: list[ItemScorer] | None = None,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        lossless: bool = False,
        offload: bool = False,
        long_prompts: Literal["refuse", "cut"] = "refuse",
        denoiser: str = "torch",
    ) -> None:
        super().__init__()
        self._backbone = backbone
        self.given: Mapping[str, Any] = {}
        self.metrics = list(metrics or [])
        self._negative_prompt, self._height, self._width = negative_prompt, height, width
        check_characters(negative_prompt or "", "model.negative_prompt")
        self._lossless, self._offload = lossless, offload
        self._cuts = long_prompts == "cut"
        self._denoiser = DenoiserChoice.parse(denoiser)
        self.backbone: Backbone
        self.samplers: dict[str, Sampler[Any]] = {}  # by arm
        name = method_name(method, "model.method")
        base = ArmPlan(name, preset, {k: as_text(v) for k, v in (settings or {}).items()})
        experiment = arms is not None or grid is not None
        # a run that is no experiment has one arm, without a name
        self._arms = expand(base, arms, grid) if experiment else {"": base}
        kind = backbone if isinstance(backbone, Backbone) else kind_of(backbone, self._denoiser)
        for arm, plan in self._arms.items():
            with placed(f"arm {arm}" if arm else ""):
                settled = resolve(plan.method, kind, plan.preset, plan.settings)
            self.samplers[arm] = method_class(plan.method)(settled)
        if isinstance(backbone, Backbone) and self._denoiser.exported:
            raise UserError(
                "a backbone given by class_path runs its own denoiser: leave out denoiser"
            )
        if isinstance(backbone, Backbone) and not (height is width is None and not offload):
            raise UserError(
                "model.height, model.width and model.offload are for backbones by name: one given by"
                " class_path has them in init_args"
            )
        self._arm_of: dict[str, str] = {}  # by item key
        self.share: list[dict[str, Any]] = []  # specs of what this rank is still to make

    @property
    def arms(self) -> list[str]:
        """The names of the arms; none where the run is no experiment."""
        return [name for name in self._arms if name]

    @property
    def setting_names(self) -> set[str]:
        """The names of all settings that the arms have."""
        return {one.name for s in self.samplers.values() for one in fields(s.settings)}

    @property
    def backbone_name(self) -> str:
        """What the backbone was called before it is loaded."""
        backbone = self._backbone
        return backbone if isinstance(backbone, str) else backbone.name

    def setup(self, stage: str) -> None:
        """Load the backbone on the strategy's device, open the scorers; on every rank."""
        on_every_rank(self.trainer, self._get_ready)

    def _get_ready(self) -> None:
        self.load()
        self.open_scorers()

    def load(self) -> None:
        """Load the backbone on the strategy's device, in the precision of the trainer.

        Raises:
            UserError: It is not there, or the precision is none of ours.
        """
        trainer: Any = self.trainer
        precision = str(trainer.precision)
        if precision not in WEIGHTS:
            raise UserError(f"trainer.precision {precision}: it may be {', '.join(WEIGHTS)}")
        if self._denoiser.exported and precision != "32-true":
            raise UserError(
                f"trainer.precision {precision}: an exported denoiser computes as it was exported; leave"
                " it at 32-true"
            )
        if isinstance(self._backbone, Backbone):
            self.backbone = self._backbone
            if self._denoiser.kind == "compile":
                compile_denoiser(self.backbone)
        else:
            self.backbone = open_model(
                self._backbone,
                self._denoiser,
                device=str(trainer.strategy.root_device),
                dtype=None if self._denoiser.exported else WEIGHTS[precision],
                offload=self._offload,
                height=self._height,
                width=self._width,
            )
        plugin = trainer.precision_plugin
        mixed = isinstance(plugin, MixedPrecision)
        self.backbone.arithmetic = plugin.forward_context if mixed else nullcontext

    def open_scorers(self) -> None:
        """Tell the scorers of the backbone.

        Raises:
            UserError: One lacks its networks or their weights, or two give numbers of one label.
        """
        known: set[str] = set()
        for metric in self.metrics:
            metric.use(self.backbone)
            both = sorted(known & metric.labels())
            if both:
                raise UserError(
                    f"metrics: two scorers give {both[0]}, and one would replace the other: leave one out, or"
                    " score by it in another run below the same root, which shares the videos"
                )
            known |= metric.labels()

    def items(
        self, wishes: Sequence[Wish], seeds: Sequence[int], frames: int | None
    ) -> dict[str, Item]:
        """Return what is to be made, by name: ``id-seed``, in an experiment ``arm/id-seed``.

        Args:
            wishes: The prompts.
            seeds: For wishes that have none of their own.
            frames: The same; None is the method's default length.

        Raises:
            UserError: A text begins after the end, two begin in one latent frame, or one is longer than the
                model reads.
        """
        height, width = self._size()
        own = self.backbone.denoiser_identity
        common: dict[str, Any] = {
            "backbone": self._known_as(),
            "weights_hash": self.backbone.weights_hash,
            "precision": str(self._trainer_precision),
            "height": height,
            "width": width,
            "lossless": self._lossless,
            "denoiser": None if own == "torch" else own,
            "configuration_hash": self.backbone.configuration_hash or self._hash_of_own(),
        }
        texts = Texts(self.backbone, self._cuts)
        out = {}
        for arm, sampler in self.samplers.items():
            method = self._arms[arm].method
            how = {
                **common,
                "method": method,
                "settings": asdict(sampler.settings),
                "code_hash": code_hash(method),
            }
            for name, item in itemize(
                wishes,
                seeds,
                sampler,
                texts,
                how,
                frames=frames,
                negative=self._negative_prompt,
                beside_others=bool(arm),
            ):
                out[f"{arm}/{name}" if arm else name] = item
                self._arm_of[item.key] = arm
        if self.trainer.is_global_zero:  # what all ranks know is this one's to tell
            texts.tell()
        return out

    def _known_as(self) -> str:
        """Return what items call the backbone."""
        name = self.backbone.name
        if isinstance(self._backbone, Backbone):
            return name
        if self._denoiser.exported:  # which says itself where its model lay
            return one_spelling(name)
        return known_as(name, self.backbone.family)

    def _hash_of_own(self) -> str | None:
        """Return the SHA-256 of what a backbone of the user's own is made of, None for ours.

        That is its class, what that was given, and the file that it is in; what this imports is not looked at.
        """
        if not isinstance(self._backbone, Backbone):
            return None
        kind = type(self._backbone)
        own = [f"{kind.__module__}.{kind.__qualname__}", self.given, source_hash(kind)]
        text = json.dumps(own, sort_keys=True, default=str)  # YAML has dates, too
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def _trainer_precision(self) -> object:
        trainer: Any = self.trainer
        return trainer.precision

    @torch.inference_mode()
    def _size(self) -> tuple[int, int]:
        """Return height and width of the frames, from what the decoder makes of an empty latent."""
        latent = torch.zeros(1, *self.backbone.latent_shape, device=self.backbone.device)
        height, width = self.backbone.decoder().push(latent).shape[-2:]
        return int(height), int(width)

    def open_work(
        self, wishes: Sequence[Wish], seeds: Sequence[int], frames: int | None
    ) -> tuple[list[dict[str, Any]], list[int]]:
        """Return the items, and the latents that the denoiser sees for each; 0 for one that is made.

        All ranks get the same answer: rank 0 looks at the disk and tells the others.

        Raises:
            UserError: A setting breaks a rule of the method, or the run was begun with other values.
        """
        trainer: Any = self.trainer
        writer = next((c for c in trainer.callbacks if isinstance(c, RunWriter)), None)
        if writer is not None:
            writer.listen()
        items: dict[str, Item] = {}
        on_every_rank(trainer, lambda: items.update(self.items(wishes, seeds, frames)))
        same_everywhere(trainer, [f"{name} {item.key}" for name, item in items.items()])

        def decide() -> tuple[list[str], list[int]]:
            estimates = self.estimates(items, BATCH)
            todo = list(items)
            if writer is None:
                made = set()
            else:
                self.prepare(items.values(), writer.run.store.is_done)
                made_of = self.made_of(wishes, seeds, items)
                todo = writer.run.open(
                    made_of, items, writer.configuration, self.backbone.device, self.metrics
                )
                made = {name for name in todo if writer.run.store.is_done(items[name].key)}
            return todo, [0 if name in made else max(estimates[name].latents, 1) for name in todo]

        todo, costs = agree(trainer, decide)
        making = [items[name] for name, cost in zip(todo, costs, strict=True) if cost]
        on_every_rank(trainer, lambda: self.prepare(making))
        if writer is not None:
            writer.begin(items, costs, self.metrics)
        return [items[name].spec() for name in todo], costs

    def prepare(
        self, items: Iterable[Item], is_done: Callable[[str], bool] = lambda key: False
    ) -> None:
        """Have what methods need besides the backbone, if any of their items is not done.

        Raises:
            UserError: It cannot be had; the arm is named.
        """
        ready = {arm for arm, s in self.samplers.items() if type(s).prepare is Sampler.prepare}
        for item in items:
            arm = self._arm_of[item.key]
            if arm in ready or is_done(item.key):
                continue
            with placed(f"arm {arm}" if arm else ""):
                self.samplers[arm].prepare()
            ready.add(arm)

    def on_predict_start(self) -> None:
        """Have the prompts of this rank's share ready, when no other rank waits for it any more."""
        texts: dict[str, None] = {}
        for spec in self.share:
            request = Item.of(spec).request()
            texts |= dict.fromkeys(prompt.text for prompt in request.prompts)
            texts[negative_prompt(request.negative_prompt, self.backbone)] = None
        # what goes wrong does so again at the video, where it is told and stops no other
        with suppress(Exception):
            self.backbone.encode_ahead(list(texts))

    def estimates(
        self, items: Mapping[str, Item], batch: int | None = None, team: int = 1
    ) -> dict[str, Estimate]:
        """Return by name what each item takes, made or not.

        Args:
            items: By name.
            batch: See ``estimate``.
            team: As ``batch``.

        Raises:
            UserError: A setting breaks a rule of the method; the arm is named.
        """
        known: dict[tuple[str, int, tuple[int, ...]], Estimate] = {}
        out = {}
        for name, item in items.items():
            arm, starts = self._arm_of[item.key], prompt_starts(item.prompts, self.backbone)
            alike = arm, item.frames, starts
            if alike not in known:
                latents = self.backbone.latents_for(item.frames)
                with placed(f"arm {arm}" if arm else ""):
                    known[alike] = estimate(
                        self.samplers[arm], self.backbone, latents, batch, starts, team
                    )
            out[name] = known[alike]
        return out

    def made_of(
        self, wishes: Sequence[Wish], seeds: Sequence[int], items: Mapping[str, Item]
    ) -> dict[str, Any]:
        """Return what decides the items, under the names a user gave it."""
        return made_of(wishes, seeds, items, self._arm_of)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Making:
        """Return the video of an item; it is made while a writer reads it.

        Args:
            batch: What ``Item.spec`` returns.
            batch_idx: Which it is of this rank's share.
        """
        item = Item.of(batch)
        sampler = self.samplers[self._arm_of[item.key]]
        video = Video(item.request(), self.backbone, sampler)
        return Making(item, video)
