"""What the small model can be asked for: each motion in several wordings, alone or two at a time."""

import random

# The last two wordings of each motion are held out: training never sees them, judging uses nothing else.
HELD_OUT = 2
WORDINGS = {
    "closer": ["the camera moves closer", "slow zoom in", "the camera pushes in", "move closer to the scene",
               "we approach slowly", "the camera zooms in", "dolly in", "a slow push in towards the middle",
               "the camera comes closer", "zoom in slowly"],
    "away": ["the camera moves away", "slow zoom out", "the camera pulls back", "move away from the scene",
             "we retreat slowly", "the camera zooms out", "dolly out", "a slow pull back from the middle",
             "the camera goes away", "zoom out slowly"],
    "left": ["the camera moves left", "pan left", "the camera pans to the left", "slide to the left",
             "the view travels left", "a slow pan towards the left side", "the camera tracks left", "look to the left",
             "the camera slides left", "slow pan to the left"],
    "right": ["the camera moves right", "pan right", "the camera pans to the right", "slide to the right",
              "the view travels right", "a slow pan towards the right side", "the camera tracks right",
              "look to the right", "the camera slides right", "slow pan to the right"],
    "up": ["the camera moves up", "tilt up", "the camera rises", "slide upwards", "the view travels up",
           "a slow tilt towards the top", "the camera climbs upwards", "look up",
           "the camera tilts up", "slow rise upwards"],
    "down": ["the camera moves down", "tilt down", "the camera sinks", "slide downwards", "the view travels down",
             "a slow tilt towards the bottom", "the camera descends downwards", "look down",
             "the camera tilts down", "slow descent downwards"],
    "clockwise": ["the picture turns clockwise", "rotate clockwise", "the scene turns clockwise",
                  "a slow clockwise turn", "turn it clockwise", "the view rotates clockwise", "spin slowly clockwise",
                  "everything turns like the hands of a clock", "the scene rotates clockwise",
                  "slow clockwise rotation"],
    "anticlockwise": ["the picture turns anticlockwise", "rotate anticlockwise", "the scene turns anticlockwise",
                      "a slow anticlockwise turn", "turn it anticlockwise", "the view rotates anticlockwise",
                      "spin slowly anticlockwise", "everything turns counterclockwise",
                      "the scene rotates anticlockwise", "slow anticlockwise rotation"],
    "fade": ["the light fades", "it gets dark", "darkness falls", "the scene grows darker", "the day ends and light goes",
             "night is falling", "the light goes out slowly", "evening comes and it darkens",
             "the light grows darker", "slowly it gets dark"],
    "warm": ["the light warms", "warm light fills the scene", "the light turns golden", "a golden glow spreads",
             "sunset colours come", "the colours grow warm", "warm evening glow", "the scene turns golden and warm",
             "golden light spreads", "the light grows warm"],
    "snow": ["snow falls", "it is snowing", "snowflakes drift down", "light snow begins to fall", "a gentle snowfall",
             "snow flakes in the air", "winter snow is falling", "white flakes of snow come down",
             "snow begins to fall", "gentle snow drifts down"],
    "rain": ["rain falls", "it is raining", "raindrops come down", "heavy rain begins to fall", "a rain shower",
             "rain pours down", "rainy weather with streaks of rain", "drops of rain are falling",
             "rain begins to fall", "a heavy rain shower"],
    "ripples": ["ripples run through the picture", "the scene ripples like water", "gentle ripples", "water ripples",
                "the surface ripples", "waves ripple softly", "rippling as under water", "everything sways in ripples",
                "soft ripples like water", "the picture ripples gently"],
    "haze": ["haze drifts by", "fog drifts through the scene", "mist rolls in", "a drifting haze", "thin fog passes",
             "misty haze spreads", "clouds of mist drift", "the fog comes in slowly",
             "drifting mist", "haze and fog drift in"],
    "shadow": ["a shadow passes", "a passing shadow", "the shadow of a cloud passes over",
               "a dark shadow crosses the scene", "shadow moves across from the left", "a cloud casts its shadow",
               "the shadow sweeps over the scene", "a shadow glides by",
               "a cloud's shadow crosses", "a dark shadow passes over"],
    "approach": [""],
}
CAMERA = ["closer", "away", "left", "right", "up", "down", "clockwise", "anticlockwise"]
EFFECTS = ["fade", "warm", "snow", "rain", "ripples", "haze", "shadow"]
SHARES = [1, 1, 5, 2, 1, 1, 1]  # of the effects; flakes and streaks are small, and falling flakes take longest to learn
JOINTS = ["{}, {}", "{} and {}", "{} while {}", "{}. {}."]
# The official negative prompt. A few samples have it in place of their prompt, so that guidance has something to
# compare with that knows of no motion in particular.
NEGATIVE = ("镜头晃动，色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
            "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
            "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走")
NEGATIVE_SHARE = 0.05


def wordings(motion, held_out=False):
    """Returns a motion's wordings for training, or those held out."""
    every = WORDINGS[motion]
    if len(every) == 1:
        return every
    return every[-HELD_OUT:] if held_out else every[:-HELD_OUT]


def draw_motions(rng):
    """Draws one or two motions; none of them is asked for by an empty prompt, which means a gentle approach."""
    u = rng.random()
    if u < 0.08:
        return ["approach"]
    if u < 0.48:
        return [rng.choice(CAMERA)]
    if u < 0.76:
        return rng.choices(EFFECTS, SHARES)
    if u < 0.94:
        return [rng.choice(CAMERA), *rng.choices(EFFECTS, SHARES)]
    return rng.sample(EFFECTS, 2)


def wording(motions, rng, held_out=False):
    """Words a prompt for one or two motions. With small letters or a capital, with or without a full stop."""
    parts = [rng.choice(wordings(motion, held_out)) for motion in motions]
    if len(parts) == 2:
        rng.shuffle(parts)
        text = rng.choice(JOINTS).format(*parts)
    else:
        text = parts[0]
    if text and rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    if text and rng.random() < 0.4:
        text = text.rstrip(".") + "."
    return text


def corpus():
    """Returns the sentences that the tokenizer is trained on; held-out wordings are not among them."""
    rng, lines = random.Random(0), []
    for motion in CAMERA + EFFECTS:
        lines += [w for w in wordings(motion)] + [w.capitalize() + "." for w in wordings(motion)]
    lines += [wording(draw_motions(rng), rng) for _ in range(4000)]
    return [line for line in lines if line]
