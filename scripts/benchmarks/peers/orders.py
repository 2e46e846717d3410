"""What the JSON echo is asked with, and how many routes there are beside the one that is asked for."""

import json

import attrs

AREAS = 200


@attrs.define
class Customer:
    id: int
    name: str
    email: str


@attrs.define
class Item:
    sku: str
    quantity: int
    price: float
    tags: list[str]


@attrs.define
class Order:
    id: int
    customer: Customer
    items: list[Item]


ORDER = json.dumps(
    {
        "id": 7,
        "customer": {"id": 3, "name": "Ada Lovelace", "email": "ada@example.com"},
        "items": [{"sku": f"sku-{i}", "quantity": i + 1, "price": 9.5 + i, "tags": ["new", "blue"]} for i in range(20)],
    }
).encode()
