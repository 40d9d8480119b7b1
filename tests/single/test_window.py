"""A rank has as many chunks under way as a link carries in some milliseconds."""

from resist_hvd.comm.blocks import Window


def test_a_window_grows_while_chunks_take_little_longer_than_the_fastest_and_shrinks_where_they_queue() -> None:
    window = Window(delay=0.02, least=3, most=6)
    sizes = []
    for seconds in (0.01, 0.02, 0.029, 0.02, 0.05, 0.05, 0.05, 0.05, 0.02):
        window.received(seconds)
        sizes.append(window.size)
    assert sizes == [4, 5, 6, 6, 5, 4, 3, 3, 4]


def test_a_long_way_alone_makes_no_window_small() -> None:
    window = Window(delay=0.02, least=3, most=64)
    for _ in range(100):
        window.received(0.3)
    assert window.size == 64
