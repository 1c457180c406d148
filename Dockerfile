# The app in a container: docker build -t pneumonia-hf . && docker run -p 7860:7860 pneumonia-hf
FROM python:3.11-slim

RUN useradd --create-home app
WORKDIR /home/app
COPY requirements.txt constraints.txt ./
# The CPU builds of PyTorch are a tenth of the size; both packages must be of one index.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    -r requirements.txt -c constraints.txt
COPY app.py ./
COPY pneumonia_hf ./pneumonia_hf
USER app
ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860 GRADIO_ANALYTICS_ENABLED=False
EXPOSE 7860
CMD ["python", "app.py"]
