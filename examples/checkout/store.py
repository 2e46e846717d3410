"""The shop's database: its schema, its seed, and the statements the flows use, as effects."""

from examples.checkout.domain import ActiveCart, Cart, Charge, Line, Order, User
from zerver import Effect
from zerver.effects import sql

SCHEMA = """
create table if not exists users (id text primary key, name text not null, tier text not null, token text unique);
create table if not exists cart_lines (
    cart_id text not null, sku text not null, quantity integer not null, price integer not null,
    primary key (cart_id, sku)
);
create table if not exists stock (sku text primary key, quantity integer not null);
create table if not exists orders (
    id text primary key, user_id text not null, cart_id text not null, amount integer not null,
    payment text not null, status text not null
);
insert into users values
    ('user_1', 'Ada', 'gold', 'token-user_1'),
    ('user_2', 'Grace', 'silver', 'token-user_2'),
    ('user_3', 'Edsger', 'plain', 'token-user_3')
on conflict do nothing;
insert into cart_lines values
    ('cart_1', 'tea', 2, 450), ('cart_1', 'pot', 1, 3900),
    ('cart_2', 'tea', 10, 450),
    ('cart_3', 'cup', 4, 1250),
    ('cart_soldout', 'samovar', 1, 19900)
on conflict do nothing;
insert into stock values ('tea', 1000000000), ('pot', 1000000000), ('cup', 1000000000), ('samovar', 0)
on conflict do nothing;
"""


def user_by_token(token: str) -> Effect[User | None]:
    return sql.fetch_one(User, "select id, name, tier from users where token = ?", token)


def cart_lines(cart_id: str) -> Effect[list[Line]]:
    return sql.fetch_all(Line, "select sku, quantity, price from cart_lines where cart_id = ? order by sku", cart_id)


def insert_order(order_id: str, user: User, cart: Cart, payment: Charge) -> Effect[int]:
    return sql.execute(
        "insert into orders (id, user_id, cart_id, amount, payment, status) values (?, ?, ?, ?, ?, 'placed')",
        order_id, user.id, cart.id, payment.amount, payment.key,
        expect=1,
    )  # fmt: skip


def cancel_order(order_id: str) -> Effect[int]:
    return sql.execute("update orders set status = 'cancelled' where id = ?", order_id)


def take_stock(cart: ActiveCart) -> Effect[tuple[object, ...]]:
    """All lines or none: the first that is sold out undoes the others."""
    take = "update stock set quantity = quantity - ? where sku = ? and quantity >= ?"
    return sql.transaction(
        *[sql.execute(take, line.quantity, line.sku, line.quantity, expect=1) for line in cart.lines]
    )


def return_stock(cart: ActiveCart) -> Effect[tuple[object, ...]]:
    give = "update stock set quantity = quantity + ? where sku = ?"
    return sql.transaction(*[sql.execute(give, line.quantity, line.sku) for line in cart.lines])


def order_of(order_id: str, user: User) -> Effect[Order | None]:
    return sql.fetch_one(
        Order,
        "select id, user_id, cart_id, amount, payment, status from orders where id = ? and user_id = ?",
        order_id, user.id,
    )  # fmt: skip
