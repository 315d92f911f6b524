"""The task that Celery runs: one POST, one kept connection per thread, the answer read as ours is."""

import http.client
import json
import os
import threading

from celery import Celery

from tests.bench.poster import TEXT, TITLE, body_of, headers_of

_own = threading.local()

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    task_acks_late=True,  # else a worker that dies loses what it had taken: the same promise as ours
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)


@app.task
def post(outlet_id: str) -> None:
    """POST one item."""
    if not hasattr(_own, "connection"):
        _own.connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["BENCH_PORT"]), timeout=30)
    token = f"celery.{outlet_id}.e1.v1"
    _own.connection.request("POST", f"/{outlet_id}", body_of(token, TITLE, TEXT), headers_of(token))
    said = json.loads(_own.connection.getresponse().read())
    assert said["data"]["id"] == token
