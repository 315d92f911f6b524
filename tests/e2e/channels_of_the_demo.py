"""The demo's channels, built outside the running demo: enough of them to adapt, nothing to publish with."""

from functools import cache
from pathlib import Path
from typing import cast

import aiohttp

from channels.newmedia import NewMedia, NewMediaConfig
from distributor.channel import Tools
from distributor.files import Folder
from tests.e2e.conftest import ASSETS, OUTLETS, SHANGHAI

ANY_SECRET = "whsec_" + "QUJD" * 8  # shapes nothing


@cache
def newmedia(account: str) -> NewMedia:
    """The account's channel with the profile of the district file; it can't reach anything."""
    config = {**OUTLETS[account]["config"], "endpoint": "http://127.0.0.1:9/", "secret": ANY_SECRET}
    tools = Tools(
        folder=Folder(Path("/nonexistent")), asset=ASSETS.joinpath, timezone=SHANGHAI,
        http=cast("aiohttp.ClientSession", None),  # adapting is pure
    )  # fmt: skip
    return NewMedia(NewMediaConfig.model_validate(config), tools)
