"""The whole test that the channel needs: the laws come from the product."""

from distributor_channel_bulletin import Bulletin

from distributor.testing import ChannelContract


class TestBulletin(ChannelContract):
    channel = Bulletin

    def config(self, url):
        return {"heading": "云川区政务公开栏", "longest_chars": 200}

    async def shown(self, outlet):
        page = (outlet.folder.read("bulletin.txt") or b"").decode()
        entries = [entry.rstrip("\n").partition("\n") for entry in page.split("\n\n■ ")[1:]]
        return [{"title": title, "text": text} for title, _, text in entries]
