"""Watch a picture and answer one question about it, again and again: one file, the wheel alone.

    pip install kimivl-*.whl
    python embedded.py ARTIFACT camera.jpg "What is in front of the camera?" --every 2

The picture is whatever a camera writes to that path; it should rename a finished file over the old
one. With OpenCV, hand a frame over instead: PIL.Image.fromarray(frame[:, :, ::-1]) in the place of
the path.
"""

import argparse
import sys
import time

from kimivl import GenerationLimits, KimiVLError, Session


def answer(session: Session, picture: str, question: str, max_new_tokens: int) -> str:
    """Print the answer as it comes; return a line about how long it took."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    prompt = session.encode([{"role": "user", "content": content}])
    request = session.request(prompt, limits=GenerationLimits(max_new_tokens=max_new_tokens))
    for piece in session.stream(request):
        if piece.channel == "answer":
            print(piece.text, end="", flush=True)
    print(flush=True)
    times, usage = request.result.timings, request.result.usage
    return (
        f"{usage.prompt_tokens} tokens in, {usage.new_tokens} out; "
        f"first after {times.time_to_first_token_s:.2f} s (picture {times.encode_s:.2f} s), "
        f"then {times.decode_tokens_per_s:.1f} tokens/s"
    )


def main() -> int:
    """Ask until the count is reached, or for ever."""
    parser = argparse.ArgumentParser(description="ask about a picture that changes")
    parser.add_argument("artifact", help="folder made by `tool.py compile`")
    parser.add_argument("picture", help="path that a camera writes to")
    parser.add_argument("question")
    parser.add_argument("--every", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--times", type=int, metavar="N", help="stop after so many; else never")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N")
    given = parser.parse_args()
    try:
        started = time.perf_counter()
        session = Session.open(given.artifact, num_threads=given.threads)
        print(f"ready after {time.perf_counter() - started:.1f} s", file=sys.stderr)
        done = 0
        while given.times is None or done < given.times:
            took = answer(session, given.picture, given.question, given.max_new_tokens)
            print(took, file=sys.stderr)
            done += 1
            time.sleep(given.every)
    except KimiVLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
