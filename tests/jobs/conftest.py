"""A server of Vertex AI's API on this machine."""

from concurrent import futures

from google.cloud import aiplatform_v1
from google.cloud.aiplatform_v1.services.job_service import transports
import grpc
import pytest

_CREATE = aiplatform_v1.CreateCustomJobRequest


class _Server(grpc.GenericRpcHandler):
  """Vertex AI's, as far as the start of a job is concerned."""

  def __init__(self):
    self.requests = []

  def service(self, handler_call_details):
    assert handler_call_details.method.endswith('JobService/CreateCustomJob')
    return grpc.unary_unary_rpc_method_handler(
        self._create,
        request_deserializer=_CREATE.deserialize,
        response_serializer=aiplatform_v1.CustomJob.serialize,
    )

  def _create(self, request, context):
    self.requests.append(request)
    if request.custom_job.display_name == 'no-quota':
      context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, 'no chips left')
    request.custom_job.name = f'{request.parent}/customJobs/17'
    return request.custom_job


@pytest.fixture(name='vertex')
def _vertex():
  """The server, and a client of it."""
  handler = _Server()
  server = grpc.server(futures.ThreadPoolExecutor(1))
  server.add_generic_rpc_handlers([handler])
  port = server.add_insecure_port('127.0.0.1:0')
  server.start()
  channel = grpc.insecure_channel(f'127.0.0.1:{port}')
  transport = transports.JobServiceGrpcTransport(channel=channel)
  yield handler, aiplatform_v1.JobServiceClient(transport=transport)
  server.stop(None)
