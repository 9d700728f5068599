import pytest

from mim.losses import SmoothL1
from mim.registry import Component, Key, keys_of


def family():
    class Toy(Component, section="TOY"):
        def __init__(self, *, size: int = 1):
            self.size = size

    return Toy


def test_component_joins_its_family_by_subclassing():
    toy = family()

    class Ball(toy, name="ball"):
        pass

    assert toy.members() == {"ball": Ball}
    assert toy.named("ball") is Ball
    assert (Ball.name, Ball.section) == ("ball", "TOY")


def test_component_families_do_not_share_members():
    first, second = family(), family()

    class Ball(first, name="ball"):
        pass

    assert second.members() == {}
    assert "ball" in first.members()


def test_component_members_is_a_copy():
    toy = family()
    toy.members()["intruder"] = toy
    assert toy.members() == {}


def test_component_without_a_name_is_a_shared_base_and_not_registered():
    toy = family()

    class Round(toy):
        pass

    class Ball(Round, name="ball"):
        pass

    assert toy.members() == {"ball": Ball}


def test_component_name_that_another_class_has_is_refused():
    toy = family()

    class Ball(toy, name="ball"):
        pass

    with pytest.raises(ValueError, match=r"TOY\.name 'ball' is taken by .*Ball"):

        class Balloon(toy, name="ball"):
            pass

    assert toy.named("ball") is Ball


def test_component_of_the_same_module_and_qualname_replaces_itself():
    toy = family()

    def define():
        class Ball(toy, name="ball"):
            pass

        return Ball

    first, second = define(), define()
    assert first is not second
    assert toy.named("ball") is second


def test_component_unknown_name_gets_the_nearest_and_all_of_them():
    toy = family()

    class Ball(toy, name="ball"):
        pass

    class Kite(toy, name="kite"):
        pass

    with pytest.raises(ValueError, match=r"TOY\.name 'bal' is unknown: did you mean 'ball'\? Allowed: ball, kite"):
        toy.named("bal")
    with pytest.raises(ValueError, match=r"'zzz' is unknown: Allowed: ball, kite"):
        toy.named("zzz")


def test_keys_are_the_keyword_only_arguments_with_annotation_and_default():
    toy = family()

    class Ball(toy, name="ball"):
        def __init__(self, context: int, more: int = 3, *, radius: float = 0.5, sides: tuple[int, ...] = (1, 2)):
            pass

    assert keys_of(Ball) == {"radius": Key(float, 0.5), "sides": Key(tuple[int, ...], (1, 2))}


def test_keys_are_inherited_where_a_part_has_no_constructor():
    toy = family()

    class Ball(toy, name="ball"):
        pass

    assert keys_of(Ball) == {"size": Key(int, 1)}


def test_keys_are_not_inherited_where_a_constructor_does_not_pass_them_on():
    toy = family()

    class Ball(toy, name="ball"):
        def __init__(self, *, radius: float = 0.5):
            super().__init__()

    assert set(keys_of(Ball)) == {"radius"}


def test_keys_pass_through_a_constructor_that_takes_the_rest_and_its_own_default_wins():
    toy = family()

    class Ball(toy, name="ball"):
        def __init__(self, *, radius: float = 0.5, **keys):
            super().__init__(**keys)

    class Big(Ball, name="big"):
        def __init__(self, *, radius: float = 9.0, **keys):
            super().__init__(radius=radius, **keys)

    assert keys_of(Ball) == {"radius": Key(float, 0.5), "size": Key(int, 1)}
    assert keys_of(Big) == {"radius": Key(float, 9.0), "size": Key(int, 1)}
    assert set(keys_of(SmoothL1)) == {"beta", "over", "eps"}


def test_key_without_annotation_is_refused():
    toy = family()
    with pytest.raises(TypeError, match="'radius' is a config key"):

        class Ball(toy, name="ball"):
            def __init__(self, *, radius=0.5):
                pass

    assert toy.members() == {}


def test_key_without_default_is_refused():
    toy = family()
    with pytest.raises(TypeError, match="'radius' is a config key"):

        class Ball(toy, name="ball"):
            def __init__(self, *, radius: float):
                pass


def test_key_that_defaults_to_none_is_refused():
    toy = family()
    with pytest.raises(TypeError, match="a default that is not None"):

        class Ball(toy, name="ball"):
            def __init__(self, *, radius: float | None = None):
                pass
