"""The checkout: a flow that charges a card, places an order, reserves stock, and undoes all of it when it must."""
