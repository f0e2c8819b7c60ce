"""An asyncio client that queues outbound phone calls at Plum Voice Fuse, safely."""
