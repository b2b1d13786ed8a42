#!/usr/bin/env python3
"""Makes tokenizer.json, the small tokenizer of synthetic models, beside this file.

    pip install sentencepiece tokenizers && python make_tokenizer.py

A Unigram model with the special ids of umT5 (pad 0, eos 1, bos 2, unk 3) and its byte fallback, trained on the lines below.
"""
import io
import json
import pathlib

import sentencepiece

TEXT = """
A lighthouse keeper climbs the spiral stairs while the storm hammers the glass above the sea.
The camera follows a swallow under the stone bridge, over the slow green river and into the open sky.
Two old friends play chess in the park, leaves fall around them, and one of them laughs.
A steam locomotive crosses the viaduct, its smoke drifting back over the valley in soft morning light.
Close-up of a watchmaker's hands placing a tiny gear; dust floats in the beam of the lamp.
The baker opens the oven, warm light spills over the loaves, flour hangs in the air.
A fox walks through fresh snow, stops, listens, and turns its head towards the camera.
Children fly kites on the hill; the wind pulls, the strings tighten, the clouds move quickly.
An orange tabby cat jumps from the sofa to the shelf and knocks over a vase of tulips.
Aerial view of terraced fields after rain, water reflecting the sunset, slow pan to the right.
A violinist plays on an empty stage, dust in the spotlight, shallow depth of field, film grain.
The diver sinks past the coral reef; silver fish part and close behind her like a curtain.
Time-lapse of a city at dusk: windows light up one after another, traffic draws red and white lines.
A paper boat sails down the gutter after the storm, past boots and bicycle wheels.
The astronomer opens the dome, the telescope turns, and the Milky Way wheels slowly overhead.
A woman in a blue coat walks along the pier, her scarf moving in the wind, gulls in the distance.
Sparks fly as the blacksmith strikes the glowing iron; high contrast, slow motion, 4K, 60 fps.
Fog rolls over the pine forest and a deer steps out onto the road, ears up, eyes bright.
A robot waters flowers on a balcony, careful and slow, while the city hums below.
The train window shows fields, houses, a river, then darkness as the tunnel begins.
Rain on a tin roof, steam from a cup of tea, a dog asleep beside the door, quiet and warm.
A hot-air balloon rises with the sun; its shadow slides over vineyards and white villages.
The potter's wheel spins, wet clay grows into a bowl between her hands, soft light from the left.
Horses run through shallow water, drops like glass, wide shot, golden hour, cinematic.
Numbers 0 1 2 3 4 5 6 7 8 9 10 12 16 24 30 48 60 81 100 480 720 832 1080 1280 2026; signs: ! ? , . ; : ' " ( ) - / % & + =
The picture is sharp and detailed, the colours are natural, the movement is smooth and the face stays the same.
Low quality, blurred, overexposed, static, subtitles, watermark, ugly, deformed, extra fingers, messy background.
He turns around, she smiles, they wave, it moves, we see, you look up, I walk away, nothing changes.
From left to right, from above, from behind, zoom in, zoom out, tilt up, tilt down, hold still, follow.
Der Fluss glitzert, ein Mädchen läuft über die Brücke. Le vieux pêcheur répare son filet à l'aube.
La niña mira el mar y el viento mueve su pelo. Старый моряк смотрит на море, чайки кричат.
清晨，渔船慢慢离开港口，海面上有薄雾，镜头向右移动。
一只狐狸走过雪地，停下来，回头看着镜头，画面清晰，细节丰富。
老人在公园里下棋，树叶落下，阳光温暖，色彩自然。
夜晚的城市，灯光一盏一盏亮起，车流像河，延时摄影，高清。
女孩在海边奔跑，头发随风飘动，电影感，浅景深。
静态，模糊，低质量，字幕，水印，丑陋，变形，多余的手指，杂乱的背景。
夜の街に雨が降る。カメラはゆっくり動く。바다 위로 해가 뜬다.
"""


def main():
    blob = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.strip().split("\n") * 4), model_writer=blob, vocab_size=1600, model_type="unigram",
        byte_fallback=True, character_coverage=0.999, normalization_rule_name="nfkc", pad_id=0, eos_id=1, bos_id=2,
        unk_id=3, pad_piece="<pad>", eos_piece="</s>", bos_piece="<s>", unk_piece="<unk>", num_threads=1,
        hard_vocab_limit=False, shuffle_input_sentence=False, minloglevel=2)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=blob.getvalue())
    vocabulary = [[pieces.id_to_piece(i), round(pieces.get_score(i), 4)] for i in range(pieces.get_piece_size())]
    special = [{"id": i, "content": vocabulary[i][0], "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i in range(4)]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFKC"}, {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]},
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": True}}
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).replace('],["', '],\n["')
    pathlib.Path(__file__).with_name("tokenizer.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
