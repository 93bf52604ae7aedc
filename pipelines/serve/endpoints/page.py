"""`/`: page for users to send prompts and vote."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from llm_blender_ray.pipelines.serve.service import Endpoint, Service

PAGE = Path(__file__).parents[1] / "page.html"


def _routes(service: Service) -> APIRouter:
    router = APIRouter()
    page = PAGE.read_text(encoding="utf-8")
    headers = page_headers(page)

    @router.head("/", include_in_schema=False)
    @router.get("/", operation_id="page", response_class=HTMLResponse)
    async def show_page() -> HTMLResponse:
        """Page for users to send prompts and vote."""
        return HTMLResponse(page, headers=headers)

    return router


ENDPOINT = Endpoint("page", "/", _routes, open=True)


def page_headers(page: str) -> dict[str, str]:
    """Headers of a page that is one file."""
    return {
        "content-security-policy": content_security_policy(page),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def content_security_policy(page: str) -> str:
    """Policy that allows only the page's own script and style, by their hashes, and requests to its own host.

    See https://www.w3.org/TR/CSP3/; a browser hashes the text between the tags.
    """
    allowed = {
        "default-src": "'none'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "frame-ancestors": "'none'",
    }
    allowed |= {"base-uri": "'none'", "form-action": "'none'"}
    for element in ("script", "style"):
        texts = re.findall(rf"<{element}[^>]*>(.*?)</{element}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        allowed[f"{element}-src"] = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return "; ".join(f"{directive} {sources}" for directive, sources in allowed.items())
