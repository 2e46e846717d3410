"""Parts: how a step's signature says which piece of an HTTP request fills a parameter.

Law: a marker only names its piece. Nothing here reads a request: `zerver.http.extract` does, and it knows every
`source` that is named here.

    Annotated[int, Path()]                  /orders/{id}, from a parameter called `id`
    Annotated[list[str], Query()] = []      ?tag=a&tag=b, from a parameter called `tag`
    Annotated[Filters, Query()]             all fields of an attrs class from the query
    Annotated[Login, Form()]                the same from a form that a browser sends
    Annotated[Upload, Form()]               a file of such a form
    Annotated[str, Header()]                X-Tenant, from a parameter called `x_tenant`
    Annotated[str | None, Cookie()]         the cookie `session`, None when there is none
    Annotated[CheckoutBody, Body()]         JSON into an attrs class; `bytes` and `str` get the body as it came
    request: Request                        all of it

A part is required unless its parameter has a default or its type allows None.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

from zerver.core.slots import Part


@attrs.frozen
class Path(Part):
    """A parameter of the route's path: `{id}`. The route must have it, which is checked when the app opens."""

    source: ClassVar[str] = "path"


@attrs.frozen
class Query(Part):
    """A field of the query. A list, set or tuple type takes every value; any other refuses a repeated field.

    An attrs class takes the whole query, field by field; what it does not name is passed over.
    """

    source: ClassVar[str] = "query"


@attrs.frozen
class Header(Part):
    """A header field, by default the parameter's name with `_` as `-`; the case does not matter.

    A repeated field is joined with ", " (RFC 9110 §5.3); a list type gets one item for each line instead.
    """

    source: ClassVar[str] = "header"

    def named(self, param: str) -> str:
        """`x_tenant` reads `x-tenant`."""
        return self.name or param.replace("_", "-")


@attrs.frozen
class Cookie(Part):
    """A cookie. If its name comes twice, the first counts: browsers send the closest path first (RFC 6265 §5.4)."""

    source: ClassVar[str] = "cookie"


@attrs.frozen
class Body(Part):
    """The body: JSON into a type; as it came into `bytes`; as UTF-8 into `str`. It is read only when a step asks."""

    source: ClassVar[str] = "body"


@attrs.frozen
class Form(Part):
    """A field of a form, of either kind that browsers send, or all of them into an attrs class; as Query.

    With the type `Upload`, or `list[Upload]`, it is a file, or all of one name: of multipart/form-data.

    Any page in a browser can send a form to you, with your cookies: a step must check a token, or `Origin`.
    """

    source: ClassVar[str] = "form"


@attrs.frozen
class WholeRequest(Part):
    """What `zerver.http.Request` says about itself, so that a parameter may be annotated with just that class."""

    source: ClassVar[str] = "request"


@attrs.frozen
class Untouched(Part):
    """What `zerver.http.Passage` says about itself: the request as it is, its body not read, to be passed on."""

    source: ClassVar[str] = "passage"
