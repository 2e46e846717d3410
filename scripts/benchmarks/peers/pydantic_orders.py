"""The order of `orders` for frameworks that validate with pydantic."""

from pydantic import BaseModel


class Customer(BaseModel):
    id: int
    name: str
    email: str


class Item(BaseModel):
    sku: str
    quantity: int
    price: float
    tags: list[str]


class Order(BaseModel):
    id: int
    customer: Customer
    items: list[Item]
