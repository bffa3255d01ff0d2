"""A sentencepiece model that tokenizes Q-Align's prompts as LLaMA-2's does, and nothing else.

The real vocabulary is not ours to ship; the prompts' ids were once compared with it.
"""

from collections.abc import Mapping
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2 as protobuf

# The pieces that prompts and levels use, at their places in LLaMA-2's vocabulary.
PIECES = {
    **{"▁": 29871, ":": 29901, "?": 29973, "ER": 1001, "SS": 1799, "ASS": 22933, "IST": 9047},
    **{"ANT": 13566, "est": 342, "het": 9188, "ics": 1199, "▁US": 3148, "▁How": 1128, "▁A": 319},
    **{"▁would": 723, "▁you": 366, "▁rate": 6554, "▁the": 278, "▁quality": 11029, "▁of": 310},
    **{"▁this": 445, "▁image": 1967, "▁The": 450, "▁is": 338, "▁a": 263, "▁excellent": 15129},
    **{"▁good": 1781, "▁fair": 6534, "▁poor": 6460, "▁bad": 4319},
}


def write_vocabulary(path: Path, pieces: Mapping[str, int] = PIECES) -> Path:
    """Write a model of 32000 pieces, with LLaMA-2's byte fallback and dummy prefix."""
    kinds = protobuf.ModelProto.SentencePiece
    special = (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL))
    bytes_ = tuple((f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256))
    places = {number: piece for piece, number in pieces.items()}
    fillers = (
        (places.get(number, f"\ue000{number}"), kinds.NORMAL)
        for number in range(len(special + bytes_), 32000)
    )
    model = protobuf.ModelProto()
    model.trainer_spec.model_type = protobuf.TrainerSpec.UNIGRAM
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    for piece, kind in (*special, *bytes_, *fillers):
        # a lone space costs a little more, so that it joins the word after it
        model.pieces.add(piece=piece, score=-1.5 if piece == "▁" else -1.0, type=kind)
    path.write_bytes(model.SerializeToString())
    return path
