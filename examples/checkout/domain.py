"""What the checkout is about: plain values, and the slots they travel in."""

from typing import Annotated

import attrs

from zerver import Slot


@attrs.frozen
class User:
    id: str
    name: str
    tier: str


@attrs.frozen
class Line:
    sku: str
    quantity: int
    price: int  # cents


@attrs.frozen
class Cart:
    id: str
    lines: list[Line]

    @property
    def total(self) -> int:
        """Cents."""
        return sum(line.quantity * line.price for line in self.lines)


@attrs.frozen
class Charge:
    """A charge at the provider. key: the idempotency key it was made with, and its name ever after."""

    key: str
    amount: int


@attrs.frozen
class Order:
    id: str
    user_id: str
    cart_id: str
    amount: int
    payment: str
    status: str


@attrs.frozen
class CheckoutBody:
    cart_id: str
    note: str | None = None


CurrentUser = Annotated[User, Slot("auth.user")]
ActiveCart = Annotated[Cart, Slot("cart")]
Payment = Annotated[Charge, Slot("payment")]
OrderId = Annotated[str, Slot("order.id")]
