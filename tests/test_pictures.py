"""Picture files: decoding of what is sound, a reason for what is not."""

import errno
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageFile
from tiny_encoder import make_picture

from revision.decoding import decoding_workers, read_pixel_batches
from revision.pictures import Blob, open_picture, preprocessed, read_bytes, read_pixels


def pixel(picture: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    return tuple(np.asarray(picture)[y, x].tolist())


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), (255, 255, 255)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_colours_on_white(tmp_path: Path, mode: str, colour: int | tuple[int, ...], expected: tuple[int, ...]) -> None:
    Image.new(mode, (3, 2), colour).save(tmp_path / "p.png")
    picture = open_picture(tmp_path / "p.png")
    assert picture.mode == "RGB" and picture.size == (3, 2)
    assert pixel(picture) == expected


def test_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 9, 9, 9])
    picture.save(tmp_path / "p.png", transparency=1)
    assert pixel(open_picture(tmp_path / "p.png")) == (255, 255, 255)


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 0x80FF, dtype=np.uint16)).save(tmp_path / "p.png")
    assert pixel(open_picture(tmp_path / "p.png")) == (0x80, 0x80, 0x80)


def test_sixteen_bits_with_a_transparent_value(tmp_path: Path) -> None:
    """What PNG calls tRNS: one value of the 65,536 is transparent; its neighbours of the same high byte are not."""
    values = np.array([[0x1234, 0x1235], [0, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "p.png", transparency=0x1234)
    found = np.asarray(open_picture(tmp_path / "p.png"))
    assert found[..., 0].tolist() == [[255, 0x12], [0, 255]]


@pytest.mark.parametrize(("values", "expected"), [((0, 255), (0, 255)), ((0, 256), (0, 1)), ((511, 65_535), (1, 255))])
def test_sixteen_bits_in_a_container_of_thirty_two(
    tmp_path: Path, values: tuple[int, int], expected: tuple[int, int]
) -> None:
    Image.fromarray(np.array([values], dtype=np.int32)).save(tmp_path / "p.tiff")
    assert np.asarray(open_picture(tmp_path / "p.tiff"))[0, :, 0].tolist() == list(expected)


@pytest.mark.parametrize("values", [(0, 65_536), (-1, 5), (2**31 - 1, 0), (-(2**31), 70_000)])
def test_whole_numbers_of_an_unknown_range(tmp_path: Path, values: tuple[int, int]) -> None:
    """They would become white, or black, without a word."""
    Image.fromarray(np.array([values], dtype=np.int32)).save(tmp_path / "p.tiff")
    with pytest.raises(ValueError, match=r"p\.tiff is damaged: its pixels are whole numbers outside of 0 to 65,535"):
        open_picture(tmp_path / "p.tiff")


def test_cmyk_and_animation(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 2), (0, 0, 0, 0)).save(tmp_path / "p.tiff")
    assert pixel(open_picture(tmp_path / "p.tiff")) == (255, 255, 255)
    frames = [Image.new("RGB", (2, 2), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    frames[0].save(tmp_path / "p.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert pixel(open_picture(tmp_path / "p.webp")) == (200, 0, 0)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (3, 2), (0, 0, 0))
    picture.putpixel((0, 0), (250, 250, 250))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: top left comes to top right
    picture.save(tmp_path / "p.png", exif=exif)
    turned = open_picture(tmp_path / "p.png")
    assert turned.size == (2, 3)
    assert pixel(turned, x=1, y=0) == (250, 250, 250)


def test_files_that_are_not_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.png does not exist"):
        open_picture(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=rf"picture {tmp_path} is a folder; name a file in it"):
        open_picture(tmp_path)
    for name, data in (("text.png", b"hello"), ("empty.jpg", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name} is not a picture"):
            open_picture(tmp_path / name)


def test_paths_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No system takes 300 bytes as one name. A folder that may not be entered is played: a superuser enters all."""
    long = tmp_path / ("x" * 300 + ".png")
    with pytest.raises(ValueError, match=rf"^picture {long} cannot be read: File name too long$"):
        open_picture(long)
    with pytest.raises(ValueError, match=rf"^{long} cannot be read: File name too long$"):
        read_bytes(long)
    for path in (tmp_path / "p.png" / "q.png", Path("a\0b.png")):
        (tmp_path / "p.png").touch()
        with pytest.raises(ValueError, match=r"does not exist$"):
            open_picture(path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is no regular file$"):
        open_picture(tmp_path / "pipe.png")

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "stat", refuse)
    shut = Path("shut/p.png")
    assert read_pixels([shut], first_pixel).problems == ["picture shut/p.png cannot be read: Permission denied"]
    with pytest.raises(ValueError, match=r"^shut/p\.png cannot be read: Permission denied$"):
        read_bytes(shut)


@pytest.mark.parametrize(
    "form", ["PNG", "JPEG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "AVIF", "JPEG2000", "TGA"]
)
def test_formats_whatever_the_file_is_called(tmp_path: Path, form: str) -> None:
    frames = {"save_all": True, "append_images": [Image.new("RGB", (16, 16))]} if form == "MPO" else {}
    Image.new("RGB", (16, 16), (10, 200, 30)).save(tmp_path / "p.dat", form, **frames)
    assert np.allclose(pixel(open_picture(tmp_path / "p.dat")), (10, 200, 30), atol=6)


def test_no_picture_reaches_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would have Ghostscript run the program that an EPS is."""
    Image.new("RGB", (3, 2)).save(tmp_path / "p.jpg", "EPS")
    asked: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **options: asked.append(given))
    with pytest.raises(ValueError, match=r"p\.jpg is not a picture of a format that is read: AVIF, BMP, .*WEBP, TGA$"):
        open_picture(tmp_path / "p.jpg")
    assert not asked


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
def test_truncated_pictures(tmp_path: Path, suffix: str) -> None:
    file = make_picture(tmp_path / f"p.{suffix}", seed=0)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"p\.{suffix} is (damaged|not a picture)"):
        open_picture(file)


@pytest.mark.parametrize("form", ["png", "jpg", "gif", "tif", "webp"])
def test_pictures_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """As the header says: nothing of them is decoded. Pillow's own limit, where that is lower, says the same."""
    file = make_picture(tmp_path / f"p.{form}", seed=0)
    monkeypatch.setattr("revision.pictures.MOST_PIXELS", 560)
    assert open_picture(file).size == (28, 20)
    monkeypatch.setattr("revision.pictures.MOST_PIXELS", 559)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    sentence = rf"^picture {file} has more than 559 pixels, the most that are decoded; scale it down$"
    with pytest.raises(ValueError, match=sentence):
        open_picture(file)
    assert read_pixels([file], first_pixel).sizes == [0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=sentence):
        open_picture(file)


def test_pictures_between_both_limits_bring_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_picture(tmp_path / "p.png", seed=0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_picture(file).size == (28, 20)


def first_pixel(picture: Image.Image) -> torch.Tensor:
    """A preprocessing that a worker process can import."""
    if picture.width == 1:
        raise ValueError("height and width must be > 0")
    return torch.from_numpy(np.asarray(picture)[:1, :1].astype(np.float32)).permute(2, 0, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_keep_order_and_name_problems(tmp_path: Path, workers: int) -> None:
    files = [make_picture(tmp_path / f"{number}.png", seed=number) for number in range(7)]
    files[2] = tmp_path / "gone.png"
    files[4] = make_picture(tmp_path / "narrow.png", seed=0, size=(5, 1))
    batches = list(read_pixel_batches([files[:3], files[3:6], files[6:]], first_pixel, workers=workers))
    assert [len(batch.tensor) for batch in batches] == [2, 2, 1]
    expected = [np.asarray(Image.open(files[number]))[0, 0] for number in (0, 1, 3, 5, 6)]
    found = torch.cat([batch.tensor for batch in batches])[:, :, 0, 0]
    np.testing.assert_array_equal(found.numpy(), np.array(expected, dtype=np.float32))
    assert [size for batch in batches for size in batch.sizes] == [560, 560, 0, 560, 0, 560, 560]
    problems = [problem for batch in batches for problem in batch.problems]
    assert problems[2] == f"picture {files[2]} does not exist"
    narrow = "a picture of 1 x 5 pixels is too narrow for an encoder; crop it, or leave it out"
    assert problems[4] == f"picture {tmp_path / 'narrow.png'}: {narrow}"
    assert [problem for number, problem in enumerate(problems) if number not in (2, 4)] == [None] * 5


def test_files_of_any_kind(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    assert read_bytes(tmp_path / "a.wav") == read_bytes(Blob("a", b"RIFF")) == b"RIFF"
    with pytest.raises(ValueError, match=r"^.*b\.wav does not exist"):
        read_bytes(tmp_path / "b.wav")
    with pytest.raises(ValueError, match=rf"^{tmp_path} is a folder; name a file in it"):
        read_bytes(tmp_path)

    with pytest.raises(ValueError, match=r"^t\.parquet, row 1, sound is empty$"):
        read_bytes(Blob("t.parquet, row 1, sound", b""))

    def too_short(content: bytes) -> torch.Tensor:
        raise ValueError("too short")

    (problem,) = read_pixels([Blob("a", b"RIFF")], too_short, read_bytes).problems
    assert problem == "a: too short"


def test_a_picture_that_would_fill_the_memory_is_not_scaled() -> None:
    """By its shorter side to 336 pixels, one of 100,000 x 1 would have 33,600,000 x 336."""

    def scale(picture: Image.Image) -> torch.Tensor:
        assert max(picture.size) <= 200 * min(picture.size)
        return torch.zeros(3, 2, 2)

    with pytest.raises(ValueError, match="a picture of 100000 x 1 pixels is too narrow"):
        preprocessed(Image.new("RGB", (100_000, 1)), scale)
    assert preprocessed(Image.new("RGB", (3, 600)), scale).shape == (3, 2, 2)


def test_batch_of_problems_alone(tmp_path: Path) -> None:
    pixels = read_pixels([tmp_path / "gone.png"], first_pixel)
    assert len(pixels.tensor) == 0 and pixels.sizes == [0]


def kill_worker(picture: Image.Image) -> torch.Tensor:
    """A preprocessing that ends its process, as running out of memory does, at a picture 5 pixels wide."""
    if picture.width == 5:
        os._exit(1)
    return first_pixel(picture)


def test_a_picture_that_ends_its_process_has_a_name(tmp_path: Path) -> None:
    """All others are read as if nothing had been, those that were on their way too."""
    bombs = (4,)
    files = [make_picture(tmp_path / f"{n}.png", n, size=(3, 5 if n in bombs else 4)) for n in range(14)]
    batches = [files[start : start + 3] for start in range(0, 14, 3)]
    found = list(read_pixel_batches(iter(batches), kill_worker, workers=1))
    assert [len(batch.problems) for batch in found] == [3, 3, 3, 3, 2]
    problems = [problem for batch in found for problem in batch.problems]
    reason = "ends the process that decodes it, in practice for want of memory; scale it down"
    assert problems == [f"{file} {reason}" if n in bombs else None for n, file in enumerate(files)]
    assert [size for batch in found for size in batch.sizes] == [0 if n in bombs else 12 for n in range(14)]
    sound = [file for n, file in enumerate(files) if n not in bombs]
    (alone,) = read_pixel_batches([sound], kill_worker, workers=0)
    assert torch.equal(torch.cat([batch.tensor for batch in found if len(batch.tensor)]), alone.tensor)


def die_once(picture: Image.Image) -> torch.Tensor:
    """Ends the first of all processes that read a picture: no picture is to blame."""
    try:
        Path(os.environ["REVISION_TEST_DIED"]).touch(exist_ok=False)
    except FileExistsError:
        return first_pixel(picture)
    os._exit(1)


def test_a_process_that_no_picture_has_ended_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVISION_TEST_DIED", str(tmp_path / "died"))
    file = make_picture(tmp_path / "p.png", seed=0)
    read = read_pixel_batches([[file, file]], die_once, workers=1)
    assert next(read).problems == [None, None]
    with pytest.raises(ValueError, match=r"each of its files can be read alone; memory may be short with workers=1"):
        next(read)


def test_processes_that_do_not_start_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revision.decoding._one_thread", os.abort)
    with pytest.raises(ValueError, match=r"processes that decode files end as soon as they start; use workers=0"):
        list(read_pixel_batches([[make_picture(tmp_path / "p.png", seed=0)]], first_pixel, workers=1))


@pytest.mark.parametrize(
    ("asked", "gpu", "cores", "processes", "workers"),
    [
        (None, True, 64, "8", 7), (None, True, 64, None, 16), (None, True, 16, None, 15), (None, True, 2, "1", 1),
        (None, True, 4, "8", 1), (None, False, 64, "8", 0), (0, True, 64, "8", 0), (40, True, 8, "8", 40),
        (3, False, 8, None, 3),
    ],
)  # fmt: skip
def test_a_process_takes_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, gpu: bool, cores: int, processes: str | None, workers: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert decoding_workers(asked, gpu=gpu) == workers


def test_all_cores_where_the_system_does_not_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert decoding_workers(None, gpu=True) == 5
