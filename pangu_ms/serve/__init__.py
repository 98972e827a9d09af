"""An HTTP server with the API of OpenAI, on the engine of `pangu_ms.infer`. It needs the extra `serve`."""
