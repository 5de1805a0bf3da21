"""What vendors mean by their errors: each row of the table, in made-up words of the vendor's own form."""

import gzip
import zlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.shapes import BYTES, Meaning, hearsay, meaning, named, read, said, unpacked

LONG = [
    (400, b'{"error":{"message":"x","type":"invalid_request_error","code":"context_length_exceeded"}}'),
    (400, b'{"error":{"message":"Your input exceeds the context window of this model.","code":null}}'),
    (400, b'{"error":{"message":"This model\'s maximum context length is 9 tokens.","code":400}}'),
    (400, b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 > 8"}}'),
    (400, b'{"type":"error","error":{"message":"input length and `max_tokens` exceed context limit: 9"}}'),
    (400, b'{"error_type":"TOO_MANY_TOKENS","id":"x","message":"x"}'),
    (400, b'{"id":"x","message":"too many tokens: size limit exceeded by 9 tokens."}'),
    (400, b'{"error":{"message":"The total length of all messages is too long.","type":"x","code":400}}'),
    (400, b'{"error":{"message":"x","type":"too_many_prompt_tokens","code":400}}'),
    (400, b'{"error":{"message":"prompt too long; exceeded max context length by 9 tokens"}}'),
    (400, b'{"error":"the input length exceeds the context length"}'),
    (400, b'{"error":{"code":400,"message":"The input token count (9) exceeds the maximum number of tokens'
          b' allowed (8).","status":"INVALID_ARGUMENT"}}'),
    (400, b'[{"error":{"code":400,"message":"The input token count exceeds the maximum number of tokens'
          b' allowed 8.","status":"INVALID_ARGUMENT"}}]'),
    (400, b'{"error":{"code":400,"message":"Unable to submit request because the input token count is 9 but'
          b' model only supports up to 8.","status":"INVALID_ARGUMENT"}}'),
    (400, b'{"message":"Input is too long for requested model."}'),
    (400, b'{"message":"Too many input tokens. Max input tokens: 8, request input token count: 9"}'),
    (400, b'{"message":"Input Tokens Exceeded: Number of input tokens exceeds maximum length"}'),
    (400, b'{"code":"x","error":"This model\'s maximum prompt length is 8 but the request contains 9 tokens."}'),
    (400, b'{"error":{"code":400,"message":"the request exceeds the available context size",'
          b'"type":"exceed_context_size_error"}}'),
    (400, b'{"error":{"message":"Invalid request: Your request exceeded model token limit: 8","type":"x"}}'),
    (400, b'{"error":{"code":"1261","message":"x"}}'),
    (400, b'{"error":{"message":"Provider returned error","code":400,"metadata":{"provider_name":"x",'
          b'"raw":"{\\"error\\":{\\"message\\":\\"prompt is too long: 9 > 8\\"}}"}}}'),
    (413, b'{"error":{"code":"tokens_limit_reached","message":"Request body too large for m model."}}'),
    (422, b'{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8. Given: 9",'
          b'"error_type":"validation"}'),
    (400, b"prompt is too long"),
]  # fmt: skip
CREDENTIAL = [
    (401, b""),
    (401, b"<html>no</html>"),
    (400, b'{"code":"invalid-argument","error":"Incorrect API key provided. Get one at x."}'),
    (400, b'{"error":{"code":400,"message":"API key not valid. Please pass a valid one.","status":'
          b'"INVALID_ARGUMENT","details":[{"@type":"x/google.rpc.ErrorInfo","reason":"API_KEY_INVALID"}]}}'),
    (400, b'[{"error":{"code":400,"message":"API key expired. Please renew it.","status":"x"}}]'),
    (400, b'{"error":{"code":400,"message":"x","details":[{"reason":"API_KEY_INVALID"}]}}'),
    (403, b'{"error":{"code":403,"message":"Your API key was reported as leaked.",'
          b'"status":"PERMISSION_DENIED"}}'),
    (403, b'{"message":"The security token included in the request is invalid."}'),
    (403, b'{"message":"The security token included in the request is expired"}'),
    (403, b'{"__type":"com.amazon.coral.service#x","message":"Signature expired: 1 is now earlier than 2"}'),
    (403, b'{"success":false,"errors":[{"code":10000,"message":"Authentication error"}]}'),
    (403, b'{"status":403,"title":"Forbidden","detail":"Authorization failed"}'),
    (403, b'{"error":{"code":"unauthorized","message":"The API key you provided is invalid."}}'),
    (403, b"Unauthorized\n"),
]  # fmt: skip
ACCOUNT = [
    (402, b""),
    (402, b'{"error":{"message":"Insufficient Balance"}}'),
    (400, b'{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low'
          b' to access this API."}}'),
    (400, b'{"error":{"code":400,"message":"User location is not supported for the API use.",'
          b'"status":"FAILED_PRECONDITION"}}'),
    (403, b'{"error":{"code":"unsupported_country_region_territory","message":"Country not supported"}}'),
    (403, b'{"error":{"code":403,"message":"x","status":"PERMISSION_DENIED","details":'
          b'[{"reason":"BILLING_DISABLED"}]}}'),
    (403, b'{"type":"error","error":{"type":"forbidden","message":"Request not allowed"}}'),
    (403, b'{"error":{"message":"Key limit exceeded (total limit).","code":403}}'),
    (403, b'{"code":"The caller does not have permission to execute the specified operation","error":'
          b'"Your newly created team doesn\'t have any credits yet."}'),
    (403, b'{"code":30001,"message":"Sorry, your account balance is insufficient","data":null}'),
]  # fmt: skip
PERMISSION = [
    (403, b'{"message":"You don\'t have access to the model with the specified model ID."}'),
    (403, b'{"message":"User: arn:x is not authorized to perform: x because no identity-based policy allows'
          b' it"}'),
    (403, b'{"type":"error","error":{"type":"permission_error","message":"Your API key does not have x"}}'),
    (403, b'{"error":{"code":"model_not_found","message":"Project `x` does not have access to model `m`"}}'),
    (403, b'{"error":{"code":"AccessDenied","message":"Access denied due to Virtual Network/Firewall rules."}}'),
    (400, b'{"error":{"message":"Your organization must be verified to stream this model.","code":null}}'),
    (402, b'{"error":{"message":"This request requires more credits, or fewer max_tokens.","code":402}}'),
]  # fmt: skip
NOTHING = [
    (400, b""),
    (400, b"{"),
    (400, b"[" * 100_000),
    (400, b"\xff\xfe"),
    (400, b"null"),
    (400, b'{"error":{"message":7,"code":[],"details":"x"}}'),
    (400, b'{"error":{"message":"Invalid value: \'x\'.","type":"invalid_request_error","code":"x"}}'),
    (400, b'{"error":{"message":"Invalid \'max_tokens\'.","failed_generation":"prompt is too long"}}'),
    (404, b'{"error":{"message":"prompt is too long"}}'),
    (429, b'{"error":{"message":"x","code":"context_length_exceeded"}}'),
    (500, b'{"error":{"message":"prompt is too long"}}'),
    (403, b""),
    (403, b"<html><title>Forbidden</title>Sorry, you have been blocked. Access denied</html>"),
    (403, b'{"error":{"message":"m requires moderation. Your input was flagged.","code":403}}'),
    (403, b'{"code":"The caller does not have permission to execute the specified operation","error":'
          b'"Content violates usage guidelines. Team: x, API key ID: x, Failed check: SAFETY_CHECK"}'),
    (403, b'{"error":{"message":"You do not have access: this was flagged.","code":"permission_error"}}'),
    (403, b'{"error":{"message":"No.","type":"invalid_request_error","code":null}}'),
    (404, b'{"message":"You don\'t have access to the model"}'),
]  # fmt: skip
"""What is no such thing, though some of it looks like one."""


@pytest.mark.parametrize(
    ("status", "body", "meant"),
    [
        (status, body, meant)
        for meant, rows in (
            (Meaning.TOO_LONG, LONG),
            (Meaning.CREDENTIAL, CREDENTIAL),
            (Meaning.ACCOUNT, ACCOUNT),
            (Meaning.PERMISSION, PERMISSION),
            (None, NOTHING),
        )
        for status, body in rows
    ],
)
def test_read(status: int, body: bytes, meant: Meaning | None) -> None:
    """An error means what its vendor means by it, plain and packed."""
    assert read(status, body) is meant
    assert read(status, gzip.compress(body), b"GZIP ") is meant
    assert read(status, zlib.compress(body), b"deflate") is meant


@pytest.mark.parametrize(
    "quoted", ["Incorrect API key provided", "API key not valid", "Unauthorized"]
)
@pytest.mark.parametrize("status", [400, 403])
def test_a_caller_cannot_say_it(status: int, quoted: str) -> None:
    """A message that quotes the caller says nothing of our credential."""
    body = b'{"error":{"message":"Invalid value: \'%b\'.","param":"role","code":"invalid_value"}}'
    assert read(status, body % quoted.encode()) is None


@pytest.mark.parametrize(
    ("request_", "name", "doubted"),
    [
        (b'{"model":"m","Incorrect API key":1}', "", True),
        (b'{"model":"m","incorrect api key":1}', "", True),
        (b'{"\\u0049ncorrect API key":1}', "", True),
        (b'{"incorrect\\u0020api key":1}', "", True),
        (b'{"model":"m","text":"caf\\u00e9 \\u003cb\\u003e"}', "m", False),
        (b"", "incorrect API key", True),
        (b"", "/v1beta/models/Incorrect API key:generateContent", True),
        (b"", "", False),
    ],
)
def test_hearsay(request_: bytes, name: str, doubted: bool) -> None:
    """What an error begins with may be the caller's own, where its request says it, however written."""
    told = said(b'{"error":{"message":" Incorrect API key: Extra inputs are not permitted"}}')
    assert meaning(400, told) is Meaning.CREDENTIAL
    assert hearsay(told, request_, name) is doubted


@pytest.mark.parametrize(
    "written", ["\u0131nvalid api key", "un\u0131authorized", "api \u212aey expired"]
)
def test_no_other_letters(written: str) -> None:
    """What only looks like a word of the table, once folded, is none: a request cannot be searched for it."""
    assert read(403, b'{"message":"%b"}' % written.encode()) is None


def test_codings() -> None:
    """Gzip and deflate, also without its head, are unpacked; of others nothing is known."""
    bare = zlib.compressobj(wbits=-15)
    text = b"prompt is too long"
    assert unpacked(bare.compress(text) + bare.flush(), b"deflate") == text
    assert unpacked(zlib.compress(text), b"Deflate") == text
    assert unpacked(gzip.compress(text), b"x-gzip") == text
    for none in (b"", b"identity", b"None", b" NONE "):
        assert unpacked(text, none) == text
    for other in (b"br", b"zstd", b"gzip, gzip", b"x"):
        assert unpacked(text, other) == b""


def test_a_bomb_is_not_unpacked() -> None:
    """Only the beginning of a body is unpacked, however much there is in it."""
    assert len(unpacked(gzip.compress(bytes(50_000_000)), b"gzip")) == BYTES


def test_a_cut_body_is_read_as_far_as_it_goes() -> None:
    """What arrived of a packed body is unpacked, though its end is missing."""
    packed = gzip.compress(b"prompt is too long" + bytes(range(256)) * 8)
    assert read(400, packed[:-9], b"gzip") is Meaning.TOO_LONG


@given(st.binary(), st.sampled_from([b"", b"gzip", b"deflate", b"br"]))
def test_anything(body: bytes, coding: bytes) -> None:
    """No body breaks it."""
    for status in (400, 403, 413, 422):
        read(status, body, coding)


_MEMBERS = ("error", "code", "detail", "details", "message", "metadata", "raw", "type")
_LEAVES = st.none() | st.integers(-9, 9) | st.text(max_size=5)


@given(
    st.recursive(
        _LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(_MEMBERS), inner)
    )
)
def test_any_tree(tree: object) -> None:
    """Nor does any tree of JSON."""
    said(orjson.dumps(tree))


@pytest.mark.parametrize(
    ("body", "code", "kind"),
    [
        (b'{"error":{"message":"m","type":"t_error","code":"c_d"}}', "c_d", "t_error"),
        (b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}', None, "overloaded_error"),
        (b'[{"error":{"code":400,"status":"INVALID_ARGUMENT","message":"m"}}]', "400", "INVALID_ARGUMENT"),
        (b'{"__type":"com.amazon#ValidationException","message":"m"}', "com.amazon#ValidationException", None),
        (b'{"error":"a message","code":"x"}', "x", None),
        (b'{"error":{"code":"a message, not a name","type":"a\\nb"}}', None, None),
        (b'{"error":{"code":"' + b"x" * 61 + b'","type":{"a":1}}}', None, None),
        (b'{"error":{"code":null,"type":1.5}}', None, None),
        (b'{"error":{"code":"c","type":"t"', None, None),
        (b"[]", None, None),
        (b"[" * 5000, None, None),
        (b"\xff", None, None),
        (b"<html>no</html>", None, None),
        (b"", None, None),
    ],
)  # fmt: skip
def test_named(body: bytes, code: str | None, kind: str | None) -> None:
    """An error's code and type are what stands where vendors put them, if it is a name; nothing else is."""
    assert named(body) == (code, kind)
