"""The blend of one prompt in asyncio: the service's path, and the sequential reference of bulk runs."""
