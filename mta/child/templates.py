"""Contents in a child: compiled once, signed by the keys of the moment, bound to the fields of parts."""

from __future__ import annotations

import structlog

from mta.child.letters import NoRenderer
from mta.message import (
    KeyRing,
    Renderer,
    RenderError,
    RingEntry,
    Signer,
    Template,
    compile_content,
    load_content,
    load_key,
    sender_domain,
)
from mta.model.errors import BadInput, LocalFault
from mta.wire import Batch, SigningKeys
from mta.wire import Template as TemplateFrame

log = structlog.get_logger()


class _Compiled:
    """A template, and whose signers it has; None in the place of signers: it must be signed, and cannot be."""

    __slots__ = ("sender_domain", "signers", "template")

    def __init__(self, template: Template, domain: str, signers: tuple[Signer, ...] | None) -> None:
        self.sender_domain = domain
        self.template = template
        self.signers = signers


class Templates:
    """The contents of the deliveries that this child works on."""

    def __init__(self) -> None:
        self._keys: KeyRing | None = None  # until they came there is no saying what must be signed
        self._compiled: dict[int, _Compiled | BadInput] = {}
        self._renderers: dict[tuple[int, tuple[str, ...]], Renderer | NoRenderer] = {}
        self._simulated: set[int] = set()

    def take_keys(self, frame: SigningKeys) -> None:
        """From here on messages are signed by these. Renderers handed out before must be asked for anew."""
        self._keys = _ring(frame)
        self._renderers.clear()
        for compiled in self._compiled.values():
            if isinstance(compiled, _Compiled):
                compiled.signers = self._keys.signers_for(compiled.sender_domain)
                compiled.template = compiled.template.signed_by(compiled.signers or ())

    def add(self, frame: TemplateFrame, verp_key: bytes) -> None:
        """Compiles a content; who wrote one past the checks must not stop the others."""
        if self._keys is None:
            raise LocalFault("a template came before the keys")
        if frame.is_simulated:
            self._simulated.add(frame.delivery_id)
        try:
            content = load_content(frame.content, f"delivery {frame.delivery_id}")
            domain = sender_domain(content.sender)
            signers = self._keys.signers_for(domain)
            template = compile_content(content, delivery_id=frame.delivery_id, verp_key=verp_key, signers=signers or ())
        except BadInput as error:
            log.error("content cannot be used", delivery=frame.delivery_id, error=str(error))
            self._compiled[frame.delivery_id] = error
        else:
            self._compiled[frame.delivery_id] = _Compiled(template, domain, signers)

    def forget(self, delivery_id: int) -> None:
        self._compiled.pop(delivery_id, None)
        self._simulated.discard(delivery_id)
        for key in [key for key in self._renderers if key[0] == delivery_id]:
            del self._renderers[key]

    def is_simulated(self, delivery_id: int) -> bool:
        """Nothing of this delivery is sent, its recipients are only asked for."""
        return delivery_id in self._simulated

    def renderer(self, batch: Batch) -> Renderer | NoRenderer | None:
        """What makes the messages of a batch. None: they must be signed, and there is no key to do it with."""
        key = (batch.delivery_id, batch.fields)
        renderer = self._renderers.get(key)
        if renderer is None:
            compiled = self._compiled.get(batch.delivery_id)
            if compiled is None:
                raise LocalFault(f"batch {batch.batch}: the template of delivery {batch.delivery_id} was never sent")
            if isinstance(compiled, BadInput):
                renderer = NoRenderer(compiled)
            elif compiled.signers is None:
                return None
            else:
                renderer = _bound(compiled.template, batch.fields)
            self._renderers[key] = renderer
        return renderer


def _bound(template: Template, fields: tuple[str, ...]) -> Renderer | NoRenderer:
    try:
        return template.bind(fields)
    except RenderError as error:
        return NoRenderer(error)


def _ring(frame: SigningKeys) -> KeyRing:
    """The signers of a frame; its keys were tried out by the master, when it read them."""
    entries = []
    for key in frame.keys:
        signer = None
        if key.pem:
            signer = Signer(key.d, key.selector, load_key(key.pem, "signing key", is_proven=True))
        entries.append(RingEntry(key.domain, key.has_subdomains, signer))
    return KeyRing(entries, is_required=frame.is_required)
