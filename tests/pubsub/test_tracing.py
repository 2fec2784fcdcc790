"""OpenTelemetry: the span of a handler is linked to the span of the sender."""

import pytest

from tests.support.script import run_script

pytestmark = pytest.mark.process


def test_links() -> None:
    """Handlers in a transaction and on a lease have spans, with links to the sender's."""
    printed = run_script(
        """
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        trace.set_tracer_provider(provider)

        settings.configure(**conf)
        import django
        django.setup()
        from pgbackend.pubsub import anotify, anotify_many
        from pgbackend.pubsub.registry import register
        from pgbackend.pubsub.worker import Worker
        from tests.pubsub.site.channels import Orders

        def fail(number, note):
            if number == 3:
                raise ZeroDivisionError

        register(Orders, fail)

        async def main():
            with trace.get_tracer("test").start_as_current_span("send") as span:
                sent = span.get_span_context()
                await anotify(Orders, number=1)
                await anotify_many([Orders(2), Orders(3)])
            await anotify(Orders, number=4)
            worker = Worker([Orders])
            await worker.run(batch=True)
            await worker.stop()
            for each in spans.get_finished_spans():
                if each.name != "send":
                    links = [link.context.span_id == sent.span_id for link in each.links]
                    attempt = each.attributes["pgbackend.pubsub.attempt"]
                    print(each.name, each.kind.name, attempt, links, each.status.status_code.name)

        import logging
        logging.disable()
        asyncio.run(main())
        """
    )
    name = "process tests.pubsub.site.channels.Orders CONSUMER 1"
    assert printed.splitlines() == [
        f"{name} [True] UNSET",
        f"{name} [True] UNSET",
        f"{name} [True] ERROR",
        f"{name} [] UNSET",
    ]
