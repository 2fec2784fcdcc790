from django.urls import path

from kitchen import api, board, views

urlpatterns = [
    path("favicon.ico", views.favicon),
    path("", views.menu, name="menu"),
    path("orders/", views.orders, name="orders"),
    path("orders/<int:pk>/", views.show_order, name="order"),
    path("orders/<int:pk>/advance/", views.advance_order, name="advance-order"),
    path("board/", views.board, name="board"),
    path("board/events/", board.board_events, name="board-events"),
    path("tickets/", views.tickets, name="tickets"),
    path("report/", views.report, name="report"),
    path("api/dishes/", api.DishList.as_view(), name="api-dishes"),
    path("api/orders/", api.OrderList.as_view(), name="api-orders"),
    path("api/orders/<int:pk>/", api.OrderDetail.as_view(), name="api-order"),
    path("api/orders/<int:pk>/advance/", api.OrderAdvance.as_view(), name="api-advance-order"),
]
