"""HTTP: the edge that strangers touch, and the client on the same wire.

Path, Query, Header, Cookie, Body, Request      what a step reads of a request
json, text, html, redirect, problem             what it answers
file, static, stream, sse, Event                answers that are sent after the run, piece by piece
http_client, HttpClient                         the `http` effects, and the client they use
serve_http, Router, Limits                      the server, for those who bring their own composition root
"""

from zerver.core.codec import encode_json as encode_json
from zerver.http.bodies import finish as finish
from zerver.http.capability import downstream as downstream
from zerver.http.capability import http_client as http_client
from zerver.http.certificates import CertificateFiles as CertificateFiles
from zerver.http.certificates import Certificates as Certificates
from zerver.http.client import ClientLimits as ClientLimits
from zerver.http.client import ClientResponse as ClientResponse
from zerver.http.client import HttpClient as HttpClient
from zerver.http.client import open_http_client as open_http_client
from zerver.http.dial import Dial as Dial
from zerver.http.exchange import DEFAULT_LIMITS as DEFAULT_LIMITS
from zerver.http.exchange import Exchange as Exchange
from zerver.http.exchange import Handler as Handler
from zerver.http.exchange import Limits as Limits
from zerver.http.extract import Extractor as Extractor
from zerver.http.extract import compile_extractor as compile_extractor
from zerver.http.files import file as file
from zerver.http.files import static as static
from zerver.http.gate import HeadLimits as HeadLimits
from zerver.http.listeners import open_http_listeners as open_http_listeners
from zerver.http.listeners import open_unix_listener as open_unix_listener
from zerver.http.listeners import over_tls as over_tls
from zerver.http.messages import Caller as Caller
from zerver.http.messages import Deferred as Deferred
from zerver.http.messages import Headers as Headers
from zerver.http.messages import Request as Request
from zerver.http.messages import RequestHead as RequestHead
from zerver.http.messages import Response as Response
from zerver.http.messages import ResponseHead as ResponseHead
from zerver.http.messages import Send as Send
from zerver.http.messages import Writer as Writer
from zerver.http.multipart import Upload as Upload
from zerver.http.parsers import ParserName as ParserName
from zerver.http.parts import Body as Body
from zerver.http.parts import Cookie as Cookie
from zerver.http.parts import Form as Form
from zerver.http.parts import Header as Header
from zerver.http.parts import Path as Path
from zerver.http.parts import Query as Query
from zerver.http.patterns import parse_pattern as parse_pattern
from zerver.http.pool import PoolStatistics as PoolStatistics
from zerver.http.proxy import proxy as proxy
from zerver.http.refusals import limited as limited
from zerver.http.relay import Passage as Passage
from zerver.http.render import render as render
from zerver.http.render import render_miss as render_miss
from zerver.http.render import stamped as stamped
from zerver.http.response import html as html
from zerver.http.response import json as json
from zerver.http.response import no_content as no_content
from zerver.http.response import problem as problem
from zerver.http.response import redirect as redirect
from zerver.http.response import stream as stream
from zerver.http.response import text as text
from zerver.http.router import Entry as Entry
from zerver.http.router import Match as Match
from zerver.http.router import Miss as Miss
from zerver.http.router import Router as Router
from zerver.http.router import url_for as url_for
from zerver.http.server import Server as Server
from zerver.http.server import ServerStatistics as ServerStatistics
from zerver.http.server import serve_http as serve_http
from zerver.http.sse import Event as Event
from zerver.http.sse import sse as sse
from zerver.http.trust import NO_TRUST as NO_TRUST
from zerver.http.trust import ForwardedForm as ForwardedForm
from zerver.http.trust import Trust as Trust
from zerver.http.trust import is_local as is_local
