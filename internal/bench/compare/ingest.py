"""The ingest half of revq as it is usually written in Python: aiohttp takes a text, aio_pika publishes it, and the
answer is sent when RabbitMQ has confirmed that very message. For comparison: see ../README.md.

    REVQ_AMQP_URL=amqp://guest:guest@localhost/ python3 ingest.py [PORT]
"""

import os
import sys
import uuid

import aio_pika
from aiohttp import web

QUEUE = "compare.tasks"


async def broker(app):
    """Connects while the application runs, and removes its queue at the end."""
    connection = await aio_pika.connect_robust(os.environ["REVQ_AMQP_URL"])
    async with connection:
        channel = await connection.channel()  # with publisher confirms
        queue = await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        app["exchange"] = channel.default_exchange
        yield
        await queue.delete(if_unused=False, if_empty=False)


async def queue_reverse_text(request):
    text = (await request.post()).get("text")
    if not text:
        raise web.HTTPBadRequest(text="there is no text")
    message = aio_pika.Message(
        text.encode(),
        content_type="text/plain",
        message_id=str(uuid.uuid4()),
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    await request.app["exchange"].publish(message, routing_key=QUEUE)
    return web.Response(text="Got it", status=202)


def main():
    app = web.Application()
    app.cleanup_ctx.append(broker)
    app.router.add_post("/queue_reverse_text", queue_reverse_text)
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8090
    web.run_app(app, host="127.0.0.1", port=port, access_log=None)


if __name__ == "__main__":
    main()
