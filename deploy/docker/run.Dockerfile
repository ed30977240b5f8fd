# An unmodified GoatDB server under `goatherd run`, with the door in front of it: the image of your server, with
# Goatherd added. Clients connect to the door's port, 8080; publish no other port. The server reads its own port from
# PORT.
#
#   docker build -f deploy/docker/run.Dockerfile --build-arg GOATHERD=registry.example/goatherd:1 -t my-goatdb .
#
# Both images must use the same Debian release, because Goatherd's libraries are copied, but not its Python.
ARG GOATHERD=goatherd:latest
FROM ${GOATHERD} AS goatherd

# Replace this image by that of your GoatDB server, with Python 3.13 added for Goatherd.
FROM python:3.13-slim@sha256:6771159cd4fa5d9bba1258caf0b82e6b73458c694d178ad97c5e925c2d0e1a91
COPY --from=goatherd /opt/goatherd /opt/goatherd
RUN useradd --uid 10001 --create-home goatdb && install -d -o goatdb -g goatdb -m 0700 /srv/goatdb
ENV PATH=/opt/goatherd/bin:$PATH PORT=8081
USER 10001:10001
VOLUME /srv/goatdb
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request as http; http.build_opener(http.ProxyHandler({})).open('http://127.0.0.1:8080/healthy', timeout=4)"]
# /dev/shm is in memory in every container; the key is stored there while the server runs.
ENTRYPOINT ["goatherd", "run", "--data", "/srv/goatdb", "--url", "http://127.0.0.1:8081", "--door", "8080", "--door-host", "0.0.0.0", "--"]
CMD ["deno", "run", "-A", "server.ts"]
