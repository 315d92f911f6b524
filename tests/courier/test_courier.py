"""The stranger's own test of a channel that calls out: the laws come from the product."""

from aiohttp import web
from distributor_channel_courier import Courier

from distributor.testing import ChannelContract


class TestCourier(ChannelContract):
    channel = Courier
    calls_out = True
    reads_answers = frozenset({"deliver"})
    secrets = ("s3cret-of-the-courier",)

    def config(self, url):
        return {"address": url, "password": "s3cret-of-the-courier"}

    def app(self):
        self.notes = []  # POST only adds: the service honours no token
        app = web.Application()
        app.router.add_post("/notes/{key}", self.post)
        app.router.add_delete("/notes/{key}", self.delete)
        return app

    async def post(self, request):
        self.notes.append((request.match_info["key"], await request.json()))
        return web.json_response({"ok": True})

    async def delete(self, request):
        self.notes = [(key, note) for key, note in self.notes if key != request.match_info["key"]]
        return web.Response(status=204)

    async def shown(self, outlet):
        return [note for _, note in self.notes]
