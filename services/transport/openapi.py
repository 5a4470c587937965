"""The OpenAPI 3.1 document of the HTTP API, by hand: the routes are few, and it is a contract."""

from __future__ import annotations

from typing import Any

from understudy.api import Limits

VERSION = "1.0.0"

Schema = dict[str, Any]

_CLASSIFY_EXAMPLE = {
    "request_id": "8d3f0e7a5c1b2d4e6f708192",
    "task": "topic",
    "language": "sw",
    "model": "ngram-topic-sw",
    "model_version": "5f2c9a1e",
    "predictions": [
        {
            "label": "sports",
            "score": 0.91,
            "scores": [{"label": "sports", "score": 0.91}, {"label": "travel", "score": 0.04}],
            "truncated": False,
        }
    ],
    "timings": {"queue_ms": 0.1, "tokenize_ms": 0.05, "infer_ms": 0.2, "total_ms": 0.4},
}

_MODELS_EXAMPLE = {
    "models": [
        {
            "task": "topic",
            "languages": ["sw"],
            "labels": ["science", "travel", "politics", "sports"],
            "name": "ngram-topic-sw",
            "version": "5f2c9a1e",
            "kind": "ngram",
            "max_length": 512,
        }
    ]
}

#: Status, code, title, detail, field, expected: one example of each problem.
_PROBLEMS: tuple[tuple[int, str, str, str, str | None, str | None], ...] = (
    (
        400,
        "invalid_input",
        "Invalid input",
        "the text is empty",
        "texts[3]",
        "some text",
    ),
    (
        404,
        "not_found",
        "Not found",
        "no student for task 'topics' here",
        "task",
        "one of: intent, sentiment, topic",
    ),
    (
        405,
        "method_not_allowed",
        "Method not allowed",
        "GET /v1/classify",
        None,
        "POST",
    ),
    (
        413,
        "payload_too_large",
        "Payload too large",
        "10,000 texts in one request",
        "texts",
        "at most 1,000; send more in several requests or by ClassifyStream",
    ),
    (
        415,
        "unsupported_media_type",
        "Unsupported media type",
        "'text/plain' is not read here",
        "Content-Type",
        "application/json in UTF-8",
    ),
    (
        429,
        "overloaded",
        "Overloaded",
        "4,096 texts are waiting already",
        None,
        "a queue of at most 4,096 texts",
    ),
    (500, "internal", "Internal error", "the service failed to answer", None, None),
    (
        502,
        "invalid_reply",
        "Invalid reply of the generator",
        "the generator answered with no label",
        None,
        None,
    ),
    (
        503,
        "generator_unavailable",
        "Generator unavailable",
        "the generator's endpoint can't be reached",
        None,
        None,
    ),
    (504, "timeout", "Timeout", "no answer within 30 s", None, None),
)

_RETRYABLE = (429, 503, 504)


def document(role: str, limits: Limits = Limits()) -> Schema:
    """The whole description of a service.

    Args:
        role: ``student`` or ``generator``; it changes the words, not the API.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Understudy: the {role}",
            "version": VERSION,
            "summary": "Text classification by small students and by the model that taught them.",
            "description": (
                "A student service answers for one language and all its tasks; the generator proxy "
                "answers the same API for every task and language. The same service speaks gRPC, "
                "`understudy.v1.ClassificationService`, on a port of its own.\n\n"
                "Every error is `application/problem+json` (RFC 9457) and names the field at fault."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "classification", "description": "Labels for texts."},
            {"name": "operation", "description": "Health and metrics."},
        ],
        "paths": {
            "/v1/classify": {"post": _classify()},
            "/v1/models": {"get": _models()},
            "/livez": {"get": _probe("live", "Whether the process lives.")},
            "/readyz": {
                "get": _probe(
                    "ready",
                    "Whether the service answers: its golden inputs are verified and gRPC serves.",
                )
            },
            "/metrics": {"get": _metrics()},
        },
        "components": {
            "schemas": _schemas(limits),
            "responses": {_name(status): _problem_response(status) for status, *_ in _PROBLEMS},
        },
    }


def _classify() -> Schema:
    return {
        "operationId": "classify",
        "tags": ["classification"],
        "summary": "Classify texts into the labels of a task.",
        "description": "The predictions come in the order of the texts.",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _ref("ClassifyRequest"),
                    "examples": {
                        "one": {
                            "summary": "One text",
                            "value": {"task": "topic", "texts": ["Timu yetu ilishinda jana."]},
                        },
                        "all": {
                            "summary": "Two texts, the two best labels of each",
                            "value": {
                                "task": "topic",
                                "texts": ["Timu yetu ilishinda jana.", "Uchaguzi ni kesho."],
                                "language": "sw",
                                "top_k": 2,
                            },
                        },
                    },
                }
            },
        },
        "responses": {
            "200": _answer("The predictions.", "ClassifyResponse", _CLASSIFY_EXAMPLE),
            **_problems(400, 404, 405, 413, 415, 429, 500, 502, 503, 504),
        },
    }


def _models() -> Schema:
    return {
        "operationId": "listModels",
        "tags": ["classification"],
        "summary": "List what this service answers for.",
        "responses": {
            "200": _answer("The models.", "ListModelsResponse", _MODELS_EXAMPLE),
            **_problems(405, 415, 500, 503),
        },
    }


def _probe(name: str, summary: str) -> Schema:
    return {
        "operationId": name,
        "tags": ["operation"],
        "summary": summary,
        "responses": {
            "200": {
                "description": "It does.",
                "content": {"text/plain": {"schema": {"type": "string"}, "example": "\n"}},
            },
            **_problems(405, 415, 503),
        },
    }


def _metrics() -> Schema:
    return {
        "operationId": "metrics",
        "tags": ["operation"],
        "summary": "Metrics in Prometheus' text format.",
        "responses": {
            "200": {
                "description": "The metrics.",
                "content": {
                    "text/plain": {
                        "schema": {"type": "string"},
                        "example": 'understudy_ready{role="student"} 1.0\n',
                    }
                },
            },
            **_problems(405, 415, 500),
        },
    }


def _schemas(limits: Limits) -> Schema:
    score = {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "description": "Calibrated probability.",
    }
    return {
        "ClassifyRequest": _object(
            {
                "task": {
                    "type": "string",
                    "minLength": 1,
                    "description": "Name of the task.",
                    "examples": ["topic"],
                },
                "texts": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": limits.texts,
                    "items": {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": limits.characters,
                        "description": "Well-formed Unicode with something in it, without U+0000.",
                    },
                    "description": "The texts to classify.",
                },
                "language": {
                    "type": ["string", "null"],
                    "description": (
                        "BCP-47 tag of the texts' language. A student service knows its own and "
                        "refuses any other."
                    ),
                    "examples": ["sw"],
                },
                "top_k": {
                    "type": ["integer", "null"],
                    "minimum": 1,
                    "default": 1,
                    "description": "How many labels to score, best first; all when larger.",
                },
            },
            required=("task", "texts"),
        ),
        "ClassifyResponse": _object(
            {
                "request_id": {"type": "string", "description": "Names this answer in feedback."},
                "task": {"type": "string"},
                "language": {"type": ["string", "null"]},
                "model": {"type": "string", "description": "Name of the model that answered."},
                "model_version": {
                    "type": "string",
                    "description": "Answers of one version come from the same weights.",
                },
                "predictions": {
                    "type": "array",
                    "items": _ref("Prediction"),
                    "description": "One for each text, in the order of the texts.",
                },
                "timings": _ref("Timings"),
                "usage": _ref("Usage"),
            },
            optional=("usage",),
        ),
        "Prediction": _object(
            {
                "label": {
                    "type": ["string", "null"],
                    "description": "The best label; null when the generator's reply was invalid.",
                },
                "score": {**score, "type": ["number", "null"]},
                "scores": {
                    "type": "array",
                    "items": _object({"label": {"type": "string"}, "score": score}),
                    "description": "The asked-for labels, best first.",
                },
                "truncated": {
                    "type": "boolean",
                    "description": "Whether the text was longer than the model reads, and cut.",
                },
                "invalid_reply": _object(
                    {
                        "reason": {"type": "string", "enum": ["no_label", "several_labels"]},
                        "reply": {"type": "string", "description": "What the generator wrote."},
                    }
                ),
            },
            optional=("invalid_reply",),
        ),
        "Timings": _object(
            {
                "queue_ms": {"type": "number", "description": "Waiting for a turn."},
                "tokenize_ms": {"type": "number", "description": "Turning texts into tokens."},
                "infer_ms": {
                    "type": "number",
                    "description": "Computing, or waiting for the generator.",
                },
                "total_ms": {"type": "number", "description": "From acceptance to answer."},
            }
        ),
        "Usage": _object(
            {
                "calls": {"type": "integer"},
                "prompt_tokens": {"type": "integer"},
                "completion_tokens": {"type": "integer"},
                "cost_usd": {"type": "number", "description": "Absent where no price is set."},
            },
            optional=("cost_usd",),
        )
        | {"description": "What the language model was asked; absent for a student."},
        "Model": _object(
            {
                "task": {"type": "string"},
                "languages": {"type": "array", "items": {"type": "string"}},
                "labels": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "In the order of the model's logits.",
                },
                "name": {"type": "string"},
                "version": {"type": "string"},
                "kind": {"type": "string", "examples": ["ngram", "encoder", "generator"]},
                "max_length": {
                    "type": "integer",
                    "description": "Longest input in tokens; 0 where unknown.",
                },
            }
        ),
        "ListModelsResponse": _object({"models": {"type": "array", "items": _ref("Model")}}),
        "Problem": _object(
            {
                "type": {"type": "string", "format": "uri"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "code": {"type": "string", "description": "Machine-readable reason."},
                "detail": {"type": "string", "description": "What was wrong, with what value."},
                "field": {
                    "type": "string",
                    "description": "Path of the input at fault.",
                    "examples": ["texts[3]"],
                },
                "expected": {"type": "string", "description": "What would have been right."},
                "retry_after": {"type": "number", "description": "Seconds to wait."},
            },
            optional=("field", "expected", "retry_after"),
        ),
    }


def _object(
    properties: Schema, *, required: tuple[str, ...] | None = None, optional: tuple[str, ...] = ()
) -> Schema:
    names = required or tuple(name for name in properties if name not in optional)
    return {
        "type": "object",
        "properties": properties,
        "required": list(names),
        "additionalProperties": False,
    }


def _ref(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _answer(description: str, schema: str, example: Any) -> Schema:
    return {
        "description": description,
        "content": {"application/json": {"schema": _ref(schema), "example": example}},
    }


def _problems(*statuses: int) -> Schema:
    return {str(s): {"$ref": f"#/components/responses/{_name(s)}"} for s in statuses}


def _name(status: int) -> str:
    return f"Problem{status}"


def _problem_response(status: int) -> Schema:
    _, code, title, detail, field, expected = next(p for p in _PROBLEMS if p[0] == status)
    example: Schema = {
        "type": f"urn:understudy:problem:{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
    }
    if field is not None:
        example["field"] = field
    if expected is not None:
        example["expected"] = expected
    headers: Schema = {}
    if status in _RETRYABLE:
        example["retry_after"] = 1.0
        headers["Retry-After"] = {
            "description": "Seconds to wait before trying again, where known.",
            "schema": {"type": "integer"},
        }
    if status == 405:
        headers["Allow"] = {"description": "The right methods.", "schema": {"type": "string"}}
    return {
        "description": title,
        **({"headers": headers} if headers else {}),
        "content": {"application/problem+json": {"schema": _ref("Problem"), "example": example}},
    }
