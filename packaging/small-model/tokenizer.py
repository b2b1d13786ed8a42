"""The small model's tokenizer: sentencepiece's Unigram with umT5's special tokens, trained on the prompts."""

import io
import json

import prompts

PIECES = 384
PAD, END = 0, 1
SPECIAL = ["<pad>", "</s>", "<s>", "<unk>"]


def make():
    """Trains the tokenizer and returns it as the text of a `tokenizer.json`."""
    import sentencepiece

    blob = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prompts.corpus()), model_writer=blob, vocab_size=PIECES, model_type="unigram",
        character_coverage=1.0, normalization_rule_name="nfkc", pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", eos_piece="</s>", bos_piece="<s>", unk_piece="<unk>", num_threads=1,
        hard_vocab_limit=False, shuffle_input_sentence=False, minloglevel=2,
        required_chars="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'-")
    model = sentencepiece.SentencePieceProcessor(model_proto=blob.getvalue())
    vocabulary = [[model.id_to_piece(i), round(model.get_score(i), 4)] for i in range(model.get_piece_size())]
    added = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, text in enumerate(SPECIAL)]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    ends = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFKC"}, {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]},
        "pre_tokenizer": space,
        "post_processor": {"type": "TemplateProcessing", "single": ends, "pair": ends,
                           "special_tokens": {"</s>": {"id": "</s>", "ids": [END], "tokens": ["</s>"]}}},
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": False}}
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n"


class Tokenizer:
    """Reads the text of a `tokenizer.json`."""

    def __init__(self, text):
        import tokenizers

        self.inner = tokenizers.Tokenizer.from_str(text)
        # Embeddings have a few rows more than there are tokens, as the official one has.
        self.rows = -(-self.inner.get_vocab_size() // 64) * 64

    def encode(self, texts):
        """Returns padded ids `[B, L]` as lists, and the number of tokens of each text, the end included."""
        ids = [self.inner.encode(text, add_special_tokens=False).ids + [END] for text in texts]
        longest = max(len(one) for one in ids)
        return [one + [PAD] * (longest - len(one)) for one in ids], [len(one) for one in ids]
