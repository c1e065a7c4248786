"""The released NarrLV suite, fetched from its authors at a pinned commit and checked by hash.

Source: https://github.com/AMAP-ML/NarrLV (Apache-2.0), 18 files, 360 prompts. The texts are not part of
this package; only their hashes are.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from miga_bench.errors import UserError
from miga_bench.offline import cache_folder, downloads_off

COMMIT = "8a560e9246e1fdcb8ab5ecedfb5690546d541011"
URL = f"https://raw.githubusercontent.com/AMAP-ML/NarrLV/{COMMIT}/resource/prompt_suite"
_TIMEOUT_S = 30.0
_SHA256 = {
    "scene_attribute_tna_1": "b4c72d66f7a0b6f4e4eb28fc2a496f3b5bcdcd82a4130c42dc4942da0f557121",
    "scene_attribute_tna_2": "67f74411a374058f19c8f181cbbc02c931724b8c151a7c3e5acfb9eca24eb763",
    "scene_attribute_tna_3": "a6c2e75733bf3a075449150e41204ad25e6249cbaa3a6af07e9e29fd05725f4d",
    "scene_attribute_tna_4": "a436e59adc0244e38530be8ff5994b65b6d060a5309f5df114f1888ae465b168",
    "scene_attribute_tna_5": "fda2eda54ab7a2ac7a86b75635f7b461814b8140fc6077fbed2baec2ce7875a3",
    "scene_attribute_tna_6": "73b05e2cf632b581ca626ec731ffce6fcaac225855ce206ad7a27c2d5c36c28d",
    "target_action_tna_1": "33704a8e937b4c3c10c2b5f65a56718e3944935fe6b0a9f94c32fdfdd847933d",
    "target_action_tna_2": "fe063757afcbf51054e949751eb105d379b0c3640a4af6092a8bb35446bc88f8",
    "target_action_tna_3": "c3771493c313df5e6594cf7a94da78800dd41a6ece72588394426f5d746f9099",
    "target_action_tna_4": "760d61ccd59574e272ebfab2138d3440be64373703a240f1d17b2bcd20f2efc0",
    "target_action_tna_5": "96d066c4d0ee5474e604bed748c6324a05c1e0d3c3a21a402d54fac6f7ac3ba8",
    "target_action_tna_6": "d65bfd5e95081e4baf688b220e6427ea43e799a075ebe2b73264cac0ccfe50d2",
    "target_attribute_tna_1": "882747546196b792b0d754db967b67218667c1061891000e82d6f5eb3e588ff4",
    "target_attribute_tna_2": "0694fce2d218f6d81275a76fb60fd0bb9fe96081deb817331a4149702db70f0d",
    "target_attribute_tna_3": "9b59b788b8099fffb2502736b22acb1f7ee1aacacd8dadbff6ee99b80ed3c887",
    "target_attribute_tna_4": "1139091968297245dab487cc033ff140e058a7a2446d11bf42c2ef7fb1ce2115",
    "target_attribute_tna_5": "6db13dc3859d7a389869a0f4bcef56fa3dc6d8bfc3a6c2e58b5c0ca588883149",
    "target_attribute_tna_6": "77fd0d3e10331547c2bf4eee735732a90b0ab8093c3717bb60aaff32c3abf538",
}
FILES: Mapping[str, str] = {f"prompt_suit_v4_{cell}.json": sha for cell, sha in _SHA256.items()}


def release_folder() -> Path:
    """Where the released suite is kept, in the user's cache."""
    return cache_folder("narrlv") / COMMIT[:12]


def fetch_release(
    folder: Path | None = None, url: str = URL, files: Mapping[str, str] = FILES
) -> Path:
    """Return a folder with the released suite, fetching the files that are not there yet.

    Args:
        folder: Where to keep it; by default `release_folder`.
        url: Where each file is found by name; a mirror may stand in, the hashes do not change.
        files: SHA-256 of each file by name.

    Raises:
        UserError: There is no network, downloads are off, or a file is not the one that was released.
    """
    folder = folder or release_folder()
    for name, sha in files.items():
        path = folder / name
        if path.exists():
            _check(path.read_bytes(), sha, f"{path}", "delete it, so that it is fetched anew")
            continue
        switch = downloads_off()
        if switch:
            raise UserError(
                f"NarrLV's {name} is not in {folder}, and downloads are off ({switch}); put the file there"
                f" from {url}/{name}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with urllib.request.urlopen(f"{url}/{name}", timeout=_TIMEOUT_S) as reply:
                data = reply.read()
        except (OSError, urllib.error.URLError) as error:
            raise UserError(
                f"cannot fetch NarrLV's {name} from {url} ({error}); where there is a network run "
                "`git clone https://github.com/AMAP-ML/NarrLV`, then give its resource/prompt_suite"
            ) from None
        _check(data, sha, f"{url}/{name}", "fetch it from the authors' repository")
        partial = path.with_suffix(f".{os.getpid()}.part")
        partial.write_bytes(data)
        partial.replace(path)
    return folder


def _check(data: bytes, sha: str, where: str, remedy: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha:
        raise UserError(
            f"{where} is not the released file (SHA-256 {found[:12]}..., must be {sha[:12]}...); {remedy}"
        )
