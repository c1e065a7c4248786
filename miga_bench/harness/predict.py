"""``miga-bench predict``: Lightning's command line around the module, the data and the writer."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from miga_bench.backbones import entry_of
from miga_bench.backbones.residence import pick_dtype
from miga_bench.errors import FailedError, LostError, Notice, UserError, gpu_is_lost, in_print
from miga_bench.export.choice import DenoiserChoice
from miga_bench.harness.about import check_about
from miga_bench.harness.argument_errors import one_line
from miga_bench.harness.children import Children, take_over
from miga_bench.harness.data import PromptDataModule
from miga_bench.harness.lifeline import GONE
from miga_bench.harness.module import LongVideoModule
from miga_bench.harness.output import hush
from miga_bench.harness.ranks import Gathering, part
from miga_bench.harness.stop import StopRequested
from miga_bench.harness.tracking.callback import Tracking
from miga_bench.harness.writer import RunWriter

TRAINER = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}


class PredictCLI(LightningCLI):
    """The groups trainer, model, data, run and tracking of one command."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the groups run and tracking."""
        parser.add_lightning_class_args(RunWriter, "run")
        parser.add_lightning_class_args(Tracking, "tracking")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read options and configurations.

        Raises:
            UserError: Something in them is unknown, or has a value that it cannot have.
        """
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise UserError(one_line(error, parser)) from None

    def instantiate_trainer(self, **changes: Any) -> Any:
        """Make the trainer; only Lightning knows the rules of its values.

        Raises:
            UserError: A value breaks one.
        """
        precision = usual_precision(self.config)
        if self.config.trainer.default_root_dir is None:
            # in a SLURM job Lightning loads another project's checkpoint that it finds here
            changes["default_root_dir"] = self.config_init.run.run.folder
        try:
            trainer = super().instantiate_trainer(**changes, **precision)
        except (TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            text = " ".join(str(error).split()).rstrip(".")
            raise UserError(f"trainer: {text}: check --trainer options") from None
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            # SIGUSR1 stops (``StopSignals``); Lightning would save a checkpoint, all ranks together, at once
            environment.auto_requeue = False
        take_over(trainer)
        return trainer


def usual_precision(config: Any) -> dict[str, str]:
    """Return the trainer's precision where nobody chose one: on a GPU that of ``miga-bench generate``.

    Lightning's own would be float32 there, which takes twice the memory and several times as long.

    Args:
        config: Of trainer and model, as parsed.
    """
    trainer, model = config.trainer, config.model
    named = isinstance(model.backbone, str) and not DenoiserChoice.parse(model.denoiser).exported
    on_gpu = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if trainer.precision is not None or not named or not on_gpu:
        return {}
    kind = pick_dtype(None, torch.device("cuda"), entry_of(model.backbone).family)
    return {"precision": "bf16-true" if kind == torch.bfloat16 else "16-true"}


def predict(arguments: Sequence[str], verb: str = "predict") -> dict[str, Any] | None:
    """Make a run, or what is missing of it.

    Args:
        arguments: As typed after the verb.
        verb: Which that was.

    Returns:
        What ``status.json`` holds; None on ranks other than 0.

    Raises:
        UserError: Wrong input; nothing was made.
        SystemExit: Only help or the configuration was asked for.
    """
    cli = parse(arguments, verb)
    trainer: Any = cli.trainer
    (writer,) = (c for c in trainer.callbacks if isinstance(c, RunWriter))
    (tracking,) = (c for c in trainer.callbacks if isinstance(c, Tracking))
    configuration = _plain(cli)
    writer.configuration = {
        k: v for k, v in configuration.items() if k not in ("config", "tracking")
    }
    writer.gathering = Gathering(trainer)
    launcher = trainer.strategy.launcher
    children = launcher if isinstance(launcher, Children) else None
    if children is not None:
        children.gathering = writer.gathering
    try:
        with tracking.following(trainer, writer):
            trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False)
        part()
    except SystemExit:  # how Lightning ends when it was interrupted
        if not trainer.interrupted:
            raise
        if trainer.is_global_zero and writer.status is None:
            raise StopRequested(writer.stopped_by) from None
        if writer.lifeline is not None and writer.lifeline.torn:
            raise LostError(GONE) from None
    except (UserError, FailedError) as error:
        if error.reported:
            part()
        if trainer.is_global_zero or not error.reported:
            raise
        sys.exit(2 if isinstance(error, UserError) else 1)
    except Exception as error:
        if not writer.settled:
            if getattr(error, "reported", False):
                part()
            raise
        if not gpu_is_lost(error):  # which was reported, and cannot be cleaned up
            text = f"the run is made, but cleaning up failed: {in_print(str(error))}"
            warnings.warn(text, Notice, stacklevel=2)
    finally:
        writer.gathering.done()
        writer.rest()
        if children is not None:
            children.end()
    if writer.status is None or tracking.outcome is None:
        return writer.status
    return {**writer.status, "tracking": tracking.outcome}


def parse(arguments: Sequence[str], verb: str = "predict") -> PredictCLI:
    """Return the trainer, the module and the data that options and configurations describe.

    Args:
        arguments: As typed after the verb.
        verb: Which that was.

    Raises:
        UserError: Wrong input.
        SystemExit: Only help or the configuration was asked for.
    """
    _quieten()
    try:
        cli = PredictCLI(
            LongVideoModule,
            PromptDataModule,
            run=False,
            auto_configure_optimizers=False,
            args=list(arguments),
            save_config_callback=None,
            seed_everything_default=False,
            trainer_defaults=TRAINER,
            parser_kwargs={
                "exit_on_error": False,
                "allow_abbrev": False,
                "prog": f"miga-bench {verb}",
            },
        )
        check_about(cli.config.run.about or {}, cli.model.arms, cli.model.setting_names)
        if not isinstance(cli.config.model.backbone, str):
            cli.model.given = _plain(cli)["model"]["backbone"]
        return cli
    except UserError:
        raise
    except BrokenPipeError:  # whoever reads the configuration that was asked for has read enough
        hush()
        raise SystemExit(0) from None
    except ValueError as error:
        refused = re.search(r"Errors:\s*- (.*?)\n\s*- Expected", str(error), re.DOTALL)
        if refused is None:
            raise
        # what a class said itself, among what jsonargparse tried
        raise UserError(" ".join(refused[1].split())) from None
    except MisconfigurationException as error:  # Lightning's own check of accelerator and devices
        raise UserError(
            f"trainer: {' '.join(str(error).split())} The configuration asks for what this machine has not:"
            " run it where it is, or add --trainer.accelerator cpu --trainer.devices 1"
            " --trainer.precision 32-true to look at the rest"
        ) from None


def _plain(cli: PredictCLI) -> dict[str, Any]:
    """Return the whole configuration as plain values."""
    plain: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    return plain


def _quieten() -> None:
    """Silence what Lightning says of itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for about in (
        "args parameter is intended",
        "does not have many workers",
        "across ranks is zero",
        "LeafSpec",
        r"deprecated in v4\.",  # Lightning's use of jsonargparse
        "JsonargparseDeprecationWarning",
    ):
        warnings.filterwarnings("ignore", f"(?s).*{about}")
