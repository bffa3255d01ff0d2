"""Why a picture is not restored: a sentence for every reason, with what to do about it.

Those of reading and decoding are `datasets.unusable`'s; pipelines/README.md lists them all.
"""

REASONS = {
    "empty_file": "the file has no byte; copy it again",
    "not_an_image": "its content is no PNG, JPEG, WebP, TIFF, BMP, HEIC or AVIF; convert it",
    "truncated": "it cannot be decoded to its end, or a part of it is lost; copy it again",
    "undecodable": "a decoder failed in a way that nobody foresaw; save it anew in another program",
    "oversized_metadata": "a text or a profile in it takes more than 64 MB; save it without",
    "too_many_pixels": "it has more pixels than are decoded; reduce it",
    "crashed": "it killed the process that restored it, twice; save it anew in another program",
    "damaged_member": "its archive is damaged where it lies; unpack the archive, or copy it again",
    "encrypted": "it needs a password; unpack the archive",
    "unsupported_compression": "its zip compresses it in a way that is not read; unpack it",
    "unreadable": "the system refused to read it; mend that, and run the same command again",
    "vanished": "it was listed, and then it was not there; run the same command again",
    "changed": "its length changed after it was listed; run the same command again",
    "out_of_memory": "there was no memory to read or decode it; give fewer --workers",
    "not_finite": "its restored face is not finite; a low --precision can overflow: give float32",
    "unsupported_mode": "its numbers have no known white; save it with 8 or 16 bits a channel",
    "transparent": "it has transparent pixels, behind which nothing is known; save it without",
    "not_aligned": "",
    "too_small": "",
    "no_face": "no face was found; draw its box for --faces-json",
    "no_face_restored": "no face of it was restored",
    "no_such_face": "",
    "unfit_faces": "",
}
"""Every reason, in the order of the README; empty where the detail is a sentence already."""


def sentence(reason: str, detail: str) -> str:
    """Say why a picture was not restored, in one line.

    Args:
        reason: one of `REASONS`.
        detail: what is known of this picture beyond that.
    """
    known = " ".join(detail.split())
    said = REASONS.get(reason, "")
    return f"{said} ({known})" if said and known not in ("", reason) else said or known
