"""Timelines as they are to be printed, whole; ID stands for the run's id."""

from __future__ import annotations

GOLDEN: dict[str, str] = {
    "clean": """
POST /v2/checkout  201  [ID]  interactive · tenant acme
  0.0ms  verify        → sql.fetch_one users
  1.8ms  verify        ✓ 1.8ms   io 1.8ms
  1.8ms  charge        → payments.charge(1200, 'user_1')  key=…:charge:1
 11.8ms  charge        ✓ 10.0ms  io 10.0ms
 11.8ms  create_order  → sql.execute insert orders
 13.8ms  create_order  ✓ 2.0ms   io 2.0ms
 13.8ms  reserve       → sql.execute update stock
 15.8ms  reserve       ✓ 2.0ms   io 2.0ms
 15.8ms  receipt       → http.post mail:25/send?…  key=…:receipt:1
 15.8ms  notice        → http.post warehouse/notices  key=…:notice:1
 18.8ms  receipt       ✓ 3.0ms   io 3.0ms  http 202
 18.8ms  notice        ✓ 3.0ms   io 3.0ms  http 202
 18.8ms  render        ✓ 0.0ms
slots  written auth.user payment order.id   read auth.user payment order.id
total 18.8ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 18.8 + parked 0.0
""",
    "retry": """
checkout  done  [ID]  default · tenant default
  0.0ms  verify        → sql.fetch_one users
  1.8ms  verify        ✓ 1.8ms   io 1.8ms
  1.8ms  charge        → payments.charge(1200, 'user_1')  key=…:charge:1
 45.8ms  charge        ⚠ attempt 1 timed out after 44ms, outcome unknown; retrying in 3.2ms with the same key
 89.0ms  charge        ✓ 87.2ms  io 87.2ms  attempts 2
 89.0ms  create_order  → sql.execute insert orders
 91.0ms  create_order  ✓ 2.0ms   io 2.0ms
 91.0ms  reserve       → sql.execute update stock
 93.0ms  reserve       ✓ 2.0ms   io 2.0ms
 93.0ms  receipt       → http.post mail:25/send?…  key=…:receipt:1
 93.0ms  notice        → http.post warehouse/notices  key=…:notice:1
 96.0ms  receipt       ✓ 3.0ms   io 3.0ms  http 202
 96.0ms  notice        ✓ 3.0ms   io 3.0ms  http 202
 96.0ms  render        ✓ 0.0ms
SLOW charge took 87ms of 96ms: 1 timeout + 1 retry
slots  written auth.user payment order.id   read auth.user payment order.id
total 96.0ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 96.0 + parked 0.0
""",
    "lost reply": """
checkout  done  [ID]  default · tenant default
  0.0ms  verify        → sql.fetch_one users
  1.8ms  verify        ✓ 1.8ms    io 1.8ms
  1.8ms  charge        → payments.charge(1200, 'user_1')  key=…:charge:1
 45.8ms  charge        ⚠ attempt 1 timed out after 44ms, outcome unknown; retrying in 3.2ms with the same key
 93.0ms  charge        ⚠ attempt 2 timed out after 44ms, outcome unknown; retrying in 76.1ms with the same key
213.1ms  charge        ⚠ attempt 3 timed out after 44ms, outcome unknown; gave up
216.1ms  charge        ✓ resolved by payments.find: it happened
216.1ms  charge        ✓ 214.3ms  io 214.3ms  attempts 3
216.1ms  create_order  → sql.execute insert orders
218.1ms  create_order  ✓ 2.0ms    io 2.0ms
218.1ms  reserve       → sql.execute update stock
220.1ms  reserve       ✓ 2.0ms    io 2.0ms
220.1ms  receipt       → http.post mail:25/send?…  key=…:receipt:1
220.1ms  notice        → http.post warehouse/notices  key=…:notice:1
223.1ms  receipt       ✓ 3.0ms    io 3.0ms  http 202
223.1ms  notice        ✓ 3.0ms    io 3.0ms  http 202
223.1ms  render        ✓ 0.0ms
SLOW charge took 214ms of 223ms: 3 timeouts + 2 retries
slots  written auth.user payment order.id   read auth.user payment order.id
total 223.1ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 223.1 + parked 0.0
""",
    "sold out": """
checkout  failed  [ID]  default · tenant default
  0.0ms  verify        → sql.fetch_one users
  1.8ms  verify        ✓ 1.8ms   io 1.8ms
  1.8ms  charge        → payments.charge(1200, 'user_1')  key=…:charge:1
 11.8ms  charge        ✓ 10.0ms  io 10.0ms
 11.8ms  create_order  → sql.execute insert orders
 13.8ms  create_order  ✓ 2.0ms   io 2.0ms
 13.8ms  reserve       → sql.execute update stock
 15.8ms  reserve       ✗ 2.0ms   io 2.0ms  cart: sold out (conflict cart cart_soldout)
 15.8ms  create_order  ↩ undo sql.execute  ✓  2.0ms
 17.8ms  charge        ↩ undo payments.charge by payments.refund  ✓  12.0ms
FAILED cart: sold out (conflict cart cart_soldout) in reserve; undone: create_order, charge
slots  written auth.user payment order.id   read auth.user payment order.id
total 29.8ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 29.8 + parked 0.0
""",
    "deadline": """
checkout  deadline  [ID]  default · tenant default
   0.0ms  verify        → sql.fetch_one users
   1.8ms  verify        ✓ 1.8ms     io 1.8ms
   1.8ms  charge        → payments.charge(1200, 'user_1')  key=…:charge:1
  11.8ms  charge        ✓ 10.0ms    io 10.0ms
  11.8ms  create_order  → sql.execute insert orders
2000.0ms  checkout      ✗ the deadline has passed
2000.0ms  create_order  ✗ sql.execute was cut after 1988.2ms
2000.0ms  charge        ↩ undo payments.charge by payments.refund  ✓  12.0ms
DEADLINE passed after 2000ms in create_order (sql.execute under way for 1988ms); undone: charge
slots  written auth.user payment   read auth.user payment
total 2012.0ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 2012.0 + parked 0.0
""",
    "refund fails": """
checkout  failed  [ID]  default · tenant default
  0.0ms  verify        → sql.fetch_one users
  1.8ms  verify        ✓ 1.8ms   io 1.8ms
  1.8ms  charge        → payments.charge(1200, 'user_1')  key=…:charge:1
 11.8ms  charge        ✓ 10.0ms  io 10.0ms
 11.8ms  create_order  → sql.execute insert orders
 13.8ms  create_order  ✓ 2.0ms   io 2.0ms
 13.8ms  reserve       → sql.execute update stock
 15.8ms  reserve       ✗ 2.0ms   io 2.0ms  cart: sold out (conflict cart cart_soldout)
 15.8ms  create_order  ↩ undo sql.execute  ✓  2.0ms
 17.8ms  charge        ↩ undo payments.charge by payments.refund
 27.8ms  charge        ✗ payments.refund failed: account closed
 27.8ms  charge        ↩ undo payments.charge  ✗ unresolved: account closed
FAILED cart: sold out (conflict cart cart_soldout) in reserve; undone: create_order
UNRESOLVED payments.charge in charge happened, and its undo failed: account closed
  look at payments for key ID:charge:1, then settle it by hand
slots  written auth.user payment order.id   read auth.user payment order.id
total 27.8ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 27.8 + parked 0.0
""",
    "no user": """
checkout  failed  [ID]  default · tenant default
  0.0ms  verify  → sql.fetch_one users
  1.0ms  verify  ✗ 1.0ms  io 1.0ms  unauthorized: token
FAILED unauthorized: token in verify; nothing to undo
total 1.0ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 1.0 + parked 0.0
""",
    "unresolved": """
checkout  failed  [ID]  default · tenant default
  0.0ms  verify        → sql.fetch_one users
  1.8ms  verify        ✓ 1.8ms   io 1.8ms
  1.8ms  plain_charge  → payments.charge(1200, 'user_1')  key=…:plain_charge:1
 45.8ms  plain_charge  ✗ 44.0ms  io 44.0ms  payments.charge timed out after 44ms, outcome unknown
FAILED payments.charge in plain_charge: timed out after 44ms
UNRESOLVED payments.charge in plain_charge may or may not have happened: timed out after 44ms
  look at payments for key ID:plain_charge:1, then settle it by hand
slots  written auth.user   read auth.user
total 45.8ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 45.8 + parked 0.0
""",
    "joins": """
front  done  [ID]  default · tenant default
  0.0ms  front   → join.all of 2
  0.0ms  front     → sql.fetch_all offers
  0.0ms  front     → http.get basket/items?…  hedge after 50ms
  2.2ms  front     ✓ sql.fetch_all offers  2.2ms
 50.0ms  front     + attempt 2 started after 50.0ms without an answer
 60.0ms  front     ✓ http.get basket/items?…  60.0ms  http 200
 60.0ms  front   ✓ 60.0ms  io 60.0ms
 60.0ms  prices  → join.race of 2
 60.0ms  prices    → http.get near/prices
 60.0ms  prices    → http.get far/prices
 64.0ms  prices    ✓ http.get near/prices  4.0ms  http 200
 64.0ms  prices    ✗ http.get far/prices was cut after 4.0ms: the join was decided
 64.0ms  prices  join.race won by http.get near/prices
 64.0ms  prices  ✓ 4.0ms   io 4.0ms
SLOW front took 60ms of 64ms: 1 hedge
slots  written cart   read cart
total 64.0ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 64.0 + parked 0.0
""",
    "defect": """
bad  defect  [ID]  default · tenant default
  0.0ms  verify  → sql.fetch_one users
  1.8ms  verify  ✓ 1.8ms  io 1.8ms
  1.8ms  audit   → sql.execute insert audit
  3.8ms  audit   ✓ 2.0ms  io 2.0ms
  3.8ms  count   ✗ 0.0ms  ZeroDivisionError: integer division or modulo by zero  at trace/shop.py:LINE
DEFECT ZeroDivisionError: integer division or modulo by zero in count at trace/shop.py:LINE; kept: audit
slots  written auth.user
total 3.8ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 3.8 + parked 0.0
""",
    "cancelled": """
checkout  cancelled  [ID]  default · tenant default
  0.0ms  verify        → sql.fetch_one users
  1.8ms  verify        ✓ 1.8ms   io 1.8ms
  1.8ms  charge        → payments.charge(1200, 'user_1')  key=…:charge:1
 11.8ms  charge        ✓ 10.0ms  io 10.0ms
 11.8ms  create_order  → sql.execute insert orders
 20.0ms  checkout      ✗ cancelled: the client has gone
 20.0ms  create_order  ✗ sql.execute was cut after 8.2ms
 20.0ms  charge        ↩ undo payments.charge by payments.refund  ✓  12.0ms
CANCELLED after 20ms in create_order (sql.execute under way for 8.2ms): the client has gone; undone: charge
slots  written auth.user payment   read auth.user payment
total 32.0ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 32.0 + parked 0.0
""",
    "refused": """
checkout  refused  [ID]  default · tenant default
  0.0ms  checkout  ✗ refused: draining
REFUSED by admission: draining (503, retry after 1s)
total 0.0ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 0.0 + parked 0.0
""",
    "parked": """
approval  done  [ID]  default · tenant default
  0.000s  ask_boss  ⏸ waits for 'approval', for 1h00m at most
600.000s  ask_boss  ▶ 'approval' came after 10m
600.000s  ask_boss  ✓ 0.0ms  parked 10m
600.000s  use       ✓ 0.0ms
slots  written cart   read cart
total 600000.0ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 0.0 + parked 600000.0
""",
}
