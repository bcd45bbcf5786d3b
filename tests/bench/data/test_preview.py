import json

from PIL import Image

from bench.data.preview import preview


def test_a_preview_is_drawn_of_a_data_set_with_leaks(toy, tmp_path):
    content = json.loads((toy / "test.json").read_text())
    for annotation in content["annotations"]:
        annotation["patient"] = "p0"
    (toy / "test.json").write_text(json.dumps(content))
    sheet = preview(toy, tmp_path / "sheets" / "toy.png", 3)
    with Image.open(sheet) as image:
        assert image.format == "PNG" and min(image.size) > 300
    assert [file.name for file in sheet.parent.iterdir()] == ["toy.png"]
