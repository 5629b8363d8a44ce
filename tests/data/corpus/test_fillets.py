"""Lines of the game's actors, from a folder as its packages install it."""

from tm_jax.data.corpus import fillets

_SCRIPT = """
dialogId("let-m-divna", "font_small", "What kind of strange ship is that?")
dialogStr("Co je to za divnou loď?")


dialogId("let-v-vrak0", "font_big", "A \\"wreck\\" (of a ship).")
dialogStr("To je \\"vrak\\".")

dialogId("let-x-rybka", "font_statue", "Blub.")
dialogStr("Blub.")

dialogId("let-m-nikdo", "font_small", "Nobody recorded this.")
dialogStr("To nikdo nenahrál.")
"""


def test_lines_go_to_the_actor_that_speaks_them(tmp_path):
    script, sound = tmp_path / "script" / "airplane", tmp_path / "sound" / "airplane" / "cs"
    script.mkdir(parents=True)
    sound.mkdir(parents=True)
    (script / "dialogs_cs.lua").write_text(_SCRIPT, encoding="utf-8")
    for name in ("let-m-divna", "let-v-vrak0", "let-x-rybka"):
        (sound / f"{name}.ogg").touch()
    assert fillets.lines(tmp_path, "cs") == {
        "small": [(str(sound / "let-m-divna.ogg"), "Co je to za divnou loď?")],
        "big": [(str(sound / "let-v-vrak0.ogg"), 'To je "vrak".')],
    }


def test_without_the_packages_nobody_speaks(tmp_path):
    assert fillets.lines(tmp_path, "nl") == {}
