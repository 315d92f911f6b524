"""How a screen's or a crawl's file reaches its machine."""
