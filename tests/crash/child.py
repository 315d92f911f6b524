"""The processes that are killed, and those that come after them.

``python -m tests.crash.child gated|plain`` imports the product once, ``gated`` with a gate around each await of
`distributor.dispatch`, then forks a process for each line of JSON on its standard input: the fork costs milliseconds,
the imports a second. Whoever is forked writes what it has to say to the standard output that all of them share, one
line at a time, and the first process adds how it ended.
"""

import asyncio
import gc
import json
import os
import sys
import traceback
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.crash.points import Gate, gate_module


def say(line: str) -> None:
    os.write(1, (line + "\n").encode())


def main() -> None:
    gate = gate_module("distributor.dispatch") if sys.argv[1] == "gated" else Gate()
    import structlog  # noqa: PLC0415  # after the gates, like all that imports the product
    from sqlalchemy.orm import configure_mappers  # noqa: PLC0415

    from tests.crash import life  # noqa: F401, PLC0415

    configure_mappers()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    gc.collect()
    gc.disable()  # a life is short; a collection would only copy the pages that all of them share
    gc.freeze()
    say("ready")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _live(json.loads(line), gate)
        say(f"began {pid}")
        _, status = os.waitpid(pid, 0)
        say(f"ended {os.waitstatus_to_exitcode(status)}")


def _live(order: dict[str, Any], gate: Gate) -> None:
    """What a forked process does; it never returns."""
    status = 1
    try:
        asyncio.run(_lived(order, gate))
        status = 0
    except BaseException:  # noqa: BLE001  # the process ends here, one way or the other
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


async def _lived(order: dict[str, Any], gate: Gate) -> None:
    from distributor.clock import SimulatedClock  # noqa: PLC0415
    from tests.crash.life import Life  # noqa: PLC0415

    clock = SimulatedClock(datetime.fromisoformat(order["now"]))
    gate.report = lambda line: say(f"{line}|{clock.now().isoformat()}")
    gate.target = tuple(order["target"]) if order.get("target") else None
    gate.tells_all = bool(order.get("tells_all"))
    async with Life(Path(order["folder"]), order["url"], tuple(order["outlets"]), clock).opened() as life:
        if order["act"] == "prepare":
            await life.prepare()
        else:
            report = await life.live()
            say("report " + json.dumps(asdict(report)))
    say(f"now {clock.now().isoformat()}")


if __name__ == "__main__":
    main()
